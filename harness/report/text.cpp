#include "harness/report/text.h"

#include <charconv>
#include <cmath>

namespace dsv32::harness {
namespace {

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

std::string markdown_text(std::string_view text, size_t max_bytes) {
  constexpr std::string_view kSpecial = "\\`*_{}[]()!|~$";
  constexpr std::string_view kBreak = "&#8203;";  // zero width: no mention, issue or address forms
  const std::string plain = printable(text, max_bytes);
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
  code += escaped(printable(text, max_bytes), [](std::string& out, char c) {
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
  return escaped(printable(text, max_bytes), [](std::string& out, char c) {
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
  const std::string word = printable(text);
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

static std::string with_digits(double value, int digits) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char text[40];
  const auto end =
      std::to_chars(text, text + sizeof text, value, std::chars_format::general, digits);
  return std::string(text, end.ptr);
}

std::pair<std::string, std::string> numbers_apart(double a, double b) {
  constexpr int kAll = 17;
  int digits = 3;
  while (digits < kAll && a != b && with_digits(a, digits) == with_digits(b, digits)) ++digits;
  return {with_digits(a, digits), with_digits(b, digits)};
}

std::string percent(double share) {
  constexpr double kFixed = 1e6;  // below it no exponent: 106 %, not 1.1e+02 %
  if (!std::isfinite(share)) return number(share) + " %";
  const double value = std::abs(100 * share);
  if (value < 99.5 || value >= kFixed) return with_digits(100 * share, 2) + " %";
  return std::to_string(std::llround(100 * share)) + " %";
}

size_t columns(std::string_view text) {
  size_t n = 0;
  // Bytes that continue a character have no column of their own.
  for (char c : text) n += (static_cast<unsigned char>(c) & 0xC0) == 0x80 ? 0 : 1;
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
