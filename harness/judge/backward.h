#pragma once

#include <string>
#include <vector>

#include "harness/judge/judge.h"

/// The backward pass op by op: the gradient that a tap or a weight gets from the ops next to it, on
/// the judged side's own values and its own gradients behind them. docs/diagnosis.md.
namespace dsv32::harness {

/// Staged verdicts of `dtap.*` and of the gradients of weights, in back-propagation order. Empty
/// where the judged trace has no gradient by a tap, or the staged runs have none.
[[nodiscard]] std::vector<Verdict> judge_backward(const Evidence& evidence);

/// The forced verdict of the gradient by a tap, which this pass ends with.
[[nodiscard]] Verdict judge_slope(const Evidence& evidence, const std::string& tap,
                                  const HostTensor& judged, const Yardstick& yardstick);

/// A gradient, and one of the ops that it comes from.
struct GradientSource {
  std::string op;                    // the tap that the op makes; its gradient is in the trace
  std::vector<std::string> through;  // of ops before it whose own gradient is not
};
/// Where the gradient `check` ("dtap.TAP" or "grad.WEIGHT") comes from. `held`: the judged side's
/// gradients by tap. Empty for a name of another kind.
std::vector<GradientSource> gradient_sources(const std::string& check, const ModelConfig& config,
                                             const Objective& objective,
                                             const std::map<std::string, HostTensor>& held);

}  // namespace dsv32::harness
