#pragma once

#include <cstdint>

#include "harness/training/step/evidence.h"

/// Updates of weights that are stored in 16 bits: rounding hides what one element did, so that
/// faults are looked for in all of them together.
namespace dsv32::harness {

/// Elements that have to move whichever way a weight is rounded to its nearest number, and those of
/// them that do not. Stochastic rounding leaves half of them at most.
struct Standing {
  int64_t seen = 0, still = 0;
};
Standing standing(const StepEvidence& evidence, size_t step, const std::string& name,
                  const Updates& expected);

/// A fault, and how much of it there is: 0 none, 1 all of it.
struct FaultShare {
  std::string name, words;
  double share = 0;
};
/// The fault that there is most of in one step: one of step_faults, or another ratio of the clip
/// factors of two steps. Updates are compared with those of the right rule and of the fault, as
/// stored by each kind of trainer: rounded to nearest, with float32 masters behind them or without,
/// and stochastically. The share is that of the trainer with the least of it, and counts where it
/// is certain, and where the fault would change a part of what rounding and noise of gradients do.
/// Of several that are there it is the one that leaves the least of the error.
FaultShare largest_share(const StepEvidence& evidence, size_t step);

}  // namespace dsv32::harness
