#pragma once

#include <vector>

#include "harness/cases/diagnosis.h"
#include "harness/training/step/evidence.h"

namespace dsv32::harness {

/// The fault between the gradients and the weights that explains updates which fail: of every
/// tensor, of some, of adapter factors that ranks share. `verdicts`: all of them; `expected`: the
/// right updates of every step.
Diagnosis explain_updates(const StepEvidence& evidence, const std::vector<Verdict>& verdicts,
                          const std::vector<Updates>& expected);

/// Names of faults that are found in another way than by a rule of their own, and what they are.
std::vector<std::pair<std::string, std::string>> other_step_faults();

}  // namespace dsv32::harness
