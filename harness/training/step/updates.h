#pragma once

#include <string>
#include <vector>

#include "golden/reader/training_golden.h"
#include "harness/cases/candidate.h"
#include "harness/cases/diagnosis.h"

namespace dsv32::harness {

/// What became of the weights in the first two steps of a training candidate (`step.N.update.*`).
struct StepUpdates {
  std::vector<Verdict> verdicts;  // one for each tensor and step
  Diagnosis diagnosis;            // the fault of the training step that explains them
};

/// Each step's gradients are made anew, in float64, from the weights that the candidate itself read
/// (its start and its own updates), under the golden's decisions, micro-batch by micro-batch; AdamW
/// of the recipe gives the expected updates. Where they differ, known faults between the gradients
/// and the weights are tried: what was reduced, clipped, counted, decayed. Empty where the file has
/// no update of step 0. Throws Error (artefact) for an update that no weight of the case has.
StepUpdates judge_step_updates(const Candidate& candidate, const golden::TrainingGolden& golden);

/// The names of the faults and what they are, for `list bugs`.
std::vector<std::pair<std::string, std::string>> step_fault_names();

}  // namespace dsv32::harness
