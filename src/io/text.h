#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/errors.h"

/// Small helpers for error texts. Names and values of a file are hostile until shown otherwise:
/// they are printed through `printable`.
namespace dsv32::io {

/// Throws Error (artefact).
[[noreturn]] void refuse(Complaint complaint);

/// Writes control and non-ASCII bytes as \xNN and cuts to `limit` bytes: fit for any terminal or
/// report.
std::string printable(std::string_view text, size_t limit = 160);

/// "3: a, b, c" or "300: a, b, ... and 280 more".
std::string listed(const std::vector<std::string>& names, size_t limit = 20);

}  // namespace dsv32::io
