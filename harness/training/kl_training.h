#pragma once

#include <vector>

#include "golden/reader/training_golden.h"
#include "harness/training/kl_step.h"

namespace dsv32::harness {

/// The whole training under one objective: judged side and golden against the float64 run that
/// replays the golden's decisions (its own without a golden); that the KL falls, the recall of the
/// true top-k rises, and nothing outside the indexer moves. Figures are added to `result`.
void judge_kl_training(const TrainingJob& job, const KlTask& task,
                       const golden::TrainingGolden* golden, TrainingResult& result);

/// How well the indexer finds the keys that dense attention looks at, over the query rows that see
/// more than index_topk keys.
struct Recall {
  double keys = 0;  // share of the index_topk keys of largest target mass that are selected
  double mass = 0;  // share of the target mass on selected keys
};
/// Of one run: taps topk and kl.target of dense attention, mean over layers and rows.
Recall recall_of(const ModelConfig& config, const Batch& batch, const Trace& dense);

}  // namespace dsv32::harness
