#pragma once

#include <string>
#include <vector>

#include "harness/training/suite.h"
#include "src/model/implementation.h"

namespace dsv32::harness {

/// Positions whose label is -100 do not count, shown on the judged model with the weights in force:
/// - the loss is the mean over the counted positions of its own logits;
/// - with the last quarter of the labels at -100, other tokens there change neither the loss nor
///   any gradient (causality: nothing that counts sees them), though they do where they count.
/// `options`: dtype, dialect and device of the judged side.
[[nodiscard]] std::vector<Verdict> judge_masking(const TrainingJob& job,
                                                 const Implementation& model,
                                                 const RunOptions& options, const Subject& subject);

}  // namespace dsv32::harness
