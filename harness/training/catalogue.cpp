#include "harness/cases/implementations.h"
#include "harness/training/suite.h"

namespace dsv32::harness {

TrainingResult& TrainingResult::operator+=(TrainingResult other) {
  append(verdicts, std::move(other.verdicts));
  figures.insert(figures.end(), other.figures.begin(), other.figures.end());
  tokens += other.tokens;
  return *this;
}

Subject judged_side(const std::string& impl, const std::string& note) {
  return implementation_subject(impl, " float32" + note);
}

Subject golden_side(const std::string& note) {
  return {.party = Party::golden, .label = "golden" + note};
}

std::string figure_of(const std::string& name, const std::string& impl) {
  return impl == "reference" ? name : name + ", " + impl;
}

bool lists_golden(const std::string& golden, const std::string& case_name) {
  for (const TrainingSuite& suite : training_suites())
    for (const TrainingGoldenName& listed : suite.goldens)
      if (listed.suite == golden && listed.case_name == case_name) return true;
  return false;
}

const std::vector<TrainingSuite>& training_suites() {
  static const std::vector<TrainingSuite> all = {
      {.name = "loss_descent",
       .about = "the LM loss under AdamW, step by step and free: 50 or 20 steps, lr 1e-3",
       .cases = {"tiny-wide", "small-train"},
       .goldens = {{"loss_descent", "tiny-wide"},
                   {"loss_descent", "small-train"},
                   {"loss_descent_memorised", "tiny-wide"}},
       .judge = judge_loss_descent},
      {.name = "sft_frozen_indexer",
       .about = "SFT on the LM loss, indexer frozen: 20 steps of AdamW, lr 1e-4",
       .cases = {"tiny-wide", "small-train"},
       .goldens = {{"sft_frozen_indexer", "tiny-wide"}, {"sft_frozen_indexer", "small-train"}},
       .judge = judge_sft_frozen_indexer},
      {.name = "indexer_kl",
       .about = "the indexer learns attention by its KL: warm-up, sparse stage, joint with LM",
       .cases = {"tiny-wide", "small-train"},
       .goldens = {{"indexer_kl_warmup", "tiny-wide"},
                   {"indexer_kl_sparse", "tiny-wide"},
                   {"indexer_kl_joint", "tiny-wide"},
                   {"indexer_kl_warmup", "small-train"},
                   {"indexer_kl_sparse", "small-train"}},
       .judge = judge_indexer_kl},
      {.name = "dual_lora",
       .about = "adapters on the LM loss and on the indexer's KL, two optimizers, against peft",
       .cases = {"tiny-wide", "small-train"},
       .goldens = {{"dual_lora", "tiny-wide"},
                   {"dual_lora", "small-train"},
                   {"dual_lora_experts", "tiny-wide"}},
       .judge = judge_dual_lora},
      {.name = "sharded",
       .about = "ZeRO-2 over c10d: worlds of 1 to 8 ranks against the unsharded run and DeepSpeed",
       .cases = {"tiny-shard", "small-train"},
       .goldens = {{"sharded", "tiny-shard"},
                   {"sharded_accum3", "tiny-shard"},
                   {"sharded", "small-train"}},
       .judge = judge_sharded},
      {.name = "generate",
       .about = "greedy decoding with caches, left padding and eos: 24 steps after the prompt",
       .cases = {"tiny-wide", "small"},
       .goldens = {},
       .judge = judge_generate},
  };
  return all;
}

}  // namespace dsv32::harness
