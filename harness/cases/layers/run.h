#pragma once

#include <vector>

#include "harness/cases/case_run.h"
#include "harness/cases/layers/options.h"

namespace dsv32::harness {

/// The verdicts about one subject of a streamed run.
struct LayerVerdicts {
  Subject subject;
  std::vector<Verdict> verdicts;  // selection, then staged, then forced in execution order
};

/// The segments of such a run, forward and backward counted apart.
size_t count_segments(const LayerRunOptions& options, const ModelConfig& config);

/// The decisions that a streamed run replays come from the reference in float32, which leads. Every
/// side goes over one segment of the model before any goes over the next one; its taps are judged
/// and dropped, so that no more than one segment's weights and taps are held at a time.
/// `subjects`: our implementations, without traces; a layer dialect plants a bug in one of them.
std::vector<LayerVerdicts> judge_layers(const CaseRun& run,
                                        const std::vector<JudgedTrace>& subjects,
                                        const LayerRunOptions& options);

/// A sequential twin of this case is worth its time.
bool affords_twins(const Case& c);

}  // namespace dsv32::harness
