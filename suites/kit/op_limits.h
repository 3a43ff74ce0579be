#pragma once

#include <string>

namespace dsv32::suites {

/// The largest error that a tensor of an op may have against float64, in units: one unit is the
/// rounding of the tensor's dtype (2^-24 for float32, 2^-8 for bf16) times the scale of the
/// element. The same for every backend. Throws std::out_of_range for a tensor without a row.
double op_limit(const std::string& tensor, bool is_bf16);

}  // namespace dsv32::suites
