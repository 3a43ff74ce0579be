#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/training/lora_side.h"

/// Checks of dual LoRA whose answers are determined, before and after training.
namespace dsv32::harness {

inline constexpr int64_t kLoraLogitPositions = 8;  // last ones of each row (docs/formats.md 11)

/// With B = 0: the adapters change nothing, only B has a gradient, and each loss reaches its own
/// adapters alone.
[[nodiscard]] std::vector<Verdict> judge_lora_start(LoraSide& side, const Batch& batch,
                                                    const Trace& decisions, const Subject& subject);
/// The model reads W + alpha / rank B A: in float64 every product and sum is exact.
Verdict judge_lora_scale(const TrainingJob& job, const LoraPlan& plan, const Subject& subject);

/// Logits of the last positions, by the adapters and after merging.
struct LoraLogits {
  HostTensor adapter, merged;
};
/// Leaves the side unmerged.
LoraLogits lora_logits(LoraSide& side, const Batch& batch, const Trace& decisions,
                       const Trace& merged_decisions);
/// Both against the oracle's, and against each other.
[[nodiscard]] std::vector<Verdict> judge_lora_logits(const Case& c, const LoraLogits& judged,
                                                     const LoraLogits& oracle,
                                                     const Subject& subject);
/// After training, merging and unmerging: with every B zero the weights are the base, bit by bit.
/// Sets B to zero.
Verdict judge_lora_base(LoraSide& side, const Case& c, const WeightSource& base,
                        const Subject& subject);

}  // namespace dsv32::harness
