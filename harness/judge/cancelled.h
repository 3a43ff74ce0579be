#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "harness/judge/compare.h"

/// Gradients that are zero because their terms cancel, as those of a softmax over one key.
namespace dsv32::harness {

/// The largest norm among these gradients of a layer: what sums of their kind are made of.
double gradient_scale(const std::vector<std::string>& gradients, const Trace& oracle,
                      int64_t layer);

/// Where the oracle's gradient is nothing beside the others of its layer: vacuous when the judged
/// one is no more than rounding leaves of terms of that size, else a failure. nullopt: it is not
/// nothing.
std::optional<Verdict> compare_cancelled(const Comparison& c, double scale);

}  // namespace dsv32::harness
