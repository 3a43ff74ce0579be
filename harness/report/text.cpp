#include "harness/report/text.h"

#include <charconv>
#include <cmath>
#include <cstdint>

namespace dsv32::harness {
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

void append_clean(std::string& out, std::string_view text, size_t i, CodePoint c) {
  if (c.bytes == 1 && (text[i] == '\n' || text[i] == '\t' || text[i] == '\r')) {
    out += ' ';
  } else if (c.bytes == 0 || is_harmful(c.value)) {
    out += '?';
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

template <typename Escape>
std::string escaped(const std::string& text, Escape&& escape) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) escape(out, c);
  return out;
}

bool is_shell_safe(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("_-./:=,+@%").find(c) != std::string_view::npos;
}

}  // namespace

std::string clean(std::string_view text, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < text.size() && out.size() <= max_bytes;) {
    const CodePoint c = decode_at(text, i);
    append_clean(out, text, i, c);
    i += c.bytes == 0 ? 1 : c.bytes;
  }
  cut(out, max_bytes);
  return out;
}

std::string markdown_text(std::string_view text, size_t max_bytes) {
  constexpr std::string_view kSpecial = "\\`*_{}[]()!|~$";
  constexpr std::string_view kBreak = "&#8203;";  // zero width: no mention, issue or address forms
  const std::string plain = clean(text, max_bytes);
  std::string out;
  for (size_t i = 0; i < plain.size(); ++i) {
    const char c = plain[i];
    if (c == '<' || c == '>' || c == '&') {
      out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : "&amp;";
      continue;
    }
    if (kSpecial.find(c) != std::string_view::npos) out += '\\';
    out += c;
    const std::string_view so_far = std::string_view(plain).substr(0, i + 1);
    const bool address = (c == ':' && plain.compare(i + 1, 1, "/") == 0) ||
                         (so_far.size() >= 3 && so_far.substr(so_far.size() - 3) == "www");
    if (c == '@' || c == '#' || address) out += kBreak;
  }
  return out;
}

std::string markdown_code(std::string_view text, size_t max_bytes) {
  std::string code(1, '`');
  code += escaped(clean(text, max_bytes), [](std::string& out, char c) {
    if (c == '`') {
      out += '\'';
    } else if (c == '|') {
      out += "\\|";
    } else {
      out += c;
    }
  });
  if (code.size() == 1) code += ' ';
  return code + '`';
}

std::string xml_text(std::string_view text, size_t max_bytes) {
  return escaped(clean(text, max_bytes), [](std::string& out, char c) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&apos;";
        break;
      default:
        out += c;
    }
  });
}

std::string shell_word(std::string_view text) {
  const std::string word = clean(text);
  bool safe = !word.empty();
  for (char c : word) safe = safe && is_shell_safe(c);
  if (safe) return word;
  std::string quoted(1, '\'');
  quoted += escaped(word, [](std::string& out, char c) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      out += c;
    }
  });
  return quoted + '\'';
}

std::string number(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, 3);
  return std::string(text, end.ptr);
}

size_t columns(std::string_view text) {
  size_t n = 0;
  for (char c : text) n += is_continuation(static_cast<unsigned char>(c)) ? 0 : 1;
  return n;
}

std::string padded(const std::string& text, size_t width) {
  const size_t n = columns(text);
  return n < width ? text + std::string(width - n, ' ') : text;
}

std::string counted(size_t n, std::string_view noun) {
  return std::to_string(n) + " " + std::string(noun) + (n == 1 ? "" : "s");
}

}  // namespace dsv32::harness
