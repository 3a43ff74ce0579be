#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "harness/judge/measure/metrics.h"

namespace dsv32::harness {

/// What the error of a failing tap looks like: "gain 2.500 +- 0.001", "head 3 holds 98 % of the
/// squared error", "rows from s = 17 on hold ...". Empty when nothing stands out; several parts are
/// joined by "; ".
std::string describe_structure(const Comparison& c, const RowLayout& layout, const TapError& error);

/// The one number that the right values were multiplied by, when that explains the error.
std::optional<double> whole_gain(const Comparison& c, const RowLayout& layout);

/// The part of it that needs row errors only (a sketch has no elements).
std::string describe_rows(const TapName& tap, const RowLayout& layout, const TapError& error);
/// "gain 2.5 +- 0.001" from sums of o^2, k o and k^2 over `count` values; "" when a gain does not
/// explain k - o.
std::string describe_gain(double oo, double ko, double kk, int64_t count);

}  // namespace dsv32::harness
