#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "src/io/print.h"
#include "src/model/errors.h"

/// Small helpers for error texts.
namespace dsv32::io {

/// Throws Error (artefact); nothing got is "an empty text".
[[noreturn]] void refuse(Complaint complaint);

/// "3: a, b, c" or "300: a, b, ... and 280 more".
std::string listed(const std::vector<std::string>& names, size_t limit = 20);

}  // namespace dsv32::io
