#include "harness/training.h"

namespace dsv32::harness {

const std::vector<TrainingSuite>& training_suites() {
  static const std::vector<TrainingSuite> all = {
      {.name = "sft_frozen_indexer",
       .about = "SFT on the LM loss, indexer frozen: 20 steps of AdamW, lr 1e-4",
       .cases = {"tiny-wide", "small-train"},
       .goldens = {{"sft_frozen_indexer", "tiny-wide"}, {"sft_frozen_indexer", "small-train"}},
       .judge = judge_sft_frozen_indexer},
  };
  return all;
}

}  // namespace dsv32::harness
