#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "src/io/print.h"

/// Text helpers of the report writers. Names and notes come from files of strangers: nothing of
/// them reaches a terminal, a web page or an XML parser before io::printable.
namespace dsv32::harness {

using io::number;
using io::printable;

/// printable + every character with a meaning in Markdown or HTML written as itself.
std::string markdown_text(std::string_view text, size_t max_bytes = 160);
/// printable, as inline code: backticks become apostrophes, '|' and '<' cannot break a table or
/// open a tag.
std::string markdown_code(std::string_view text, size_t max_bytes = 160);
/// printable + XML entities; fit for attribute values and element text.
std::string xml_text(std::string_view text, size_t max_bytes = 400);
/// printable, quoted for a POSIX shell where it needs it.
std::string shell_word(std::string_view text);

/// Both with as many digits as tell them apart, at least three.
std::pair<std::string, std::string> numbers_apart(double a, double b);
/// "0.38 %"
std::string percent(double share);
/// Left-aligned in `width` columns; counts characters, not bytes.
std::string padded(const std::string& text, size_t width);
size_t columns(std::string_view text);
/// "1 tap", "2 taps".
std::string counted(size_t n, std::string_view noun);

}  // namespace dsv32::harness
