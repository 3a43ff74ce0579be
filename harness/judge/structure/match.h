#pragma once

#include <string>

#include "harness/judge/comparison.h"

namespace dsv32::harness {

/// What a failing tap is instead: another tap of the oracle, the same of another layer, the row
/// before or after, or the judged side's own tap of another name; a mixture of the routed and the
/// shared experts; rows that share an expert. "" when it is none of them. `oracle` and `judged` are
/// whole runs.
std::string describe_match(const Comparison& c, const Trace& oracle, const Trace& judged);

}  // namespace dsv32::harness
