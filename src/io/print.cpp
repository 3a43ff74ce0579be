#include "src/io/print.h"

#include <charconv>
#include <cmath>
#include <cstdint>

namespace dsv32::io {
namespace {

struct CodePoint {
  uint32_t value = 0;
  size_t bytes = 0;  // 0: not valid UTF-8 here
};

bool is_continuation(unsigned char c) { return (c & 0xC0) == 0x80; }

CodePoint decode_at(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[i + k]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || i + length > text.size()) return {};
  uint32_t value = lead & (0xFF >> (length + 1));
  for (size_t k = 1; k < length; ++k) {
    if (!is_continuation(byte(k))) return {};
    value = value << 6 | (byte(k) & 0x3F);
  }
  const bool overlong = (length == 3 && value < 0x800) || (length == 4 && value < 0x10000);
  const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
  if (overlong || surrogate || value > 0x10FFFF) return {};
  return {value, length};
}

/// Characters that steer a terminal or hide text: C0, DEL, C1, direction marks, zero-width, line
/// separators, BOM, tags.
bool is_harmful(uint32_t c) {
  return c < 0x20 || (c >= 0x7F && c <= 0x9F) || c == 0xAD || c == 0x061C || c == 0x180E ||
         (c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E) ||
         (c >= 0x2060 && c <= 0x206F) || c == 0xFEFF || (c >= 0xFFF0 && c <= 0xFFFB) ||
         (c >= 0xFFFE && c <= 0xFFFF) || (c >= 0xE0000 && c <= 0xE0FFF);
}

void append_hex(std::string& out, char c) {
  constexpr char kDigits[] = "0123456789abcdef";
  const auto byte = static_cast<unsigned char>(c);
  out += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
}

void append_printable(std::string& out, std::string_view text, size_t i, CodePoint c) {
  if (c.bytes == 1 && (text[i] == '\n' || text[i] == '\t' || text[i] == '\r')) {
    out += ' ';
  } else if (c.bytes == 0) {
    append_hex(out, text[i]);
  } else if (is_harmful(c.value)) {
    for (const char byte : text.substr(i, c.bytes)) append_hex(out, byte);
  } else {
    out.append(text.substr(i, c.bytes));
  }
}

void cut(std::string& text, size_t max_bytes) {
  if (text.size() <= max_bytes) return;
  size_t end = max_bytes > 3 ? max_bytes - 3 : 0;
  while (end > 0 && is_continuation(static_cast<unsigned char>(text[end]))) --end;
  text.resize(end);
  text += "...";
}

}  // namespace

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size() && out.size() <= max_bytes;) {
    const CodePoint c = decode_at(text, i);
    append_printable(out, text, i, c);
    i += c.bytes == 0 ? 1 : c.bytes;
  }
  cut(out, max_bytes);
  return out;
}

std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 3);
  return std::string(text, end.ptr);
}

}  // namespace dsv32::io
