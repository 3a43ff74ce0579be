#pragma once

#include <string>

#include "harness/judge/comparison.h"

namespace dsv32::harness {

/// What is wrong with the sets of a failing topk tap, in words: "56 of 66 rows select future keys",
/// "the sets are not the best of the tap's own scores". `own_scores`: the judged side's ix.scores;
/// nullptr: it has none.
std::string describe_selection(const Comparison& c, const HostTensor* own_scores);

}  // namespace dsv32::harness
