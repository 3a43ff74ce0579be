#pragma once

#include <string>
#include <vector>

#include "harness/cases/candidate.h"
#include "harness/cases/case_run.h"
#include "harness/training/step/updates.h"

/// Candidates of mode `train` (docs/formats.md 4): the curve and the last parameters of a whole
/// training.
namespace dsv32::harness {

/// The golden that a training candidate is compared with: the one of its case whose recipe is the
/// candidate's metadata `recipe`; loss_descent without one. Throws Error (artefact).
std::string golden_suite_of(const Candidate& candidate);

/// Curve step by step, then every parameter, against that golden. The decisions are not in the
/// file, so values are judged free: against the golden's band where it has one. Then the updates of
/// single steps, with the fault that explains them.
[[nodiscard]] StepUpdates judge_train_candidate(const Candidate& candidate,
                                                const std::string& suite);

/// For `dump --mode train`: the recipe of loss_descent run freely by one of our implementations.
/// Only taps and the metadata `recipe`.
Trace make_train_trace(const Case& c, const std::string& impl, DType dtype, const Dialect& dialect,
                       const RunSettings& settings);

}  // namespace dsv32::harness
