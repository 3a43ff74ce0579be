#pragma once

#include <cstddef>
#include <string>
#include <string_view>

/// Text for people. Names, values and notes come from files of strangers: nothing of them reaches a
/// message, a terminal or a report before `printable`.
namespace dsv32::io {

/// Valid UTF-8 on one line. Control, direction and zero-width characters and bytes that are no
/// UTF-8 become \xNN, line breaks and tabs a space. At most `max_bytes`, cut at a character with
/// "..." at the end.
std::string printable(std::string_view text, size_t max_bytes = 400);

/// Three significant digits; "nan", "inf" and "-inf" by name.
std::string number(double value);

}  // namespace dsv32::io
