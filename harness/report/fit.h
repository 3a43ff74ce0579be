#pragma once

#include <cstddef>
#include <string>

namespace dsv32::harness {

/// Lines of a report for people, broken so that none has more than `width` columns. What follows a
/// break is indented as the text of its line. A line with a command is broken between its words,
/// with a backslash, so that it can still be pasted into a shell. Colours have no width.
std::string fitted(const std::string& text, size_t width);

}  // namespace dsv32::harness
