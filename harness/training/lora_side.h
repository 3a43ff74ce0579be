#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "harness/training/side.h"
#include "src/training/lora.h"

/// One side of a dual LoRA comparison: frozen weights, two adapters, two optimizers.
namespace dsv32::harness {

/// Weights that are made once and kept: frozen ones are read in every step.
class ResidentWeights : public WeightSource {
 public:
  explicit ResidentWeights(std::unique_ptr<WeightSource> source) : source_(std::move(source)) {}
  HostTensor load(const WeightSpec& spec) const override;
  std::string identity() const override { return source_->identity(); }

 private:
  std::unique_ptr<WeightSource> source_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, HostTensor> kept_;
};

/// What is trained: steps and optimizers, and which modules have adapters.
struct LoraPlan {
  std::string golden;  // "dual_lora", "dual_lora_experts"
  LoraTargets targets = {};
  int64_t steps = 0;
  std::string note = {};  // behind the subject
};
/// LM and sparse KL in one forward pass; AdamW lr 1e-4 for the LM adapters, 1e-3 for the KL ones.
training::Recipe lora_recipe(const LoraPlan& plan, training::Bug bug = training::Bug::none);

/// Model, adapters, optimizers and trainer, wired together. A of the case's seed, B zero.
class LoraSide {
 public:
  LoraSide(const TrainingJob& job, const LoraPlan& plan, const SideOptions& options);

  training::Trainer& trainer() { return *trainer_; }
  training::LoraAdapters& adapters() { return *adapters_; }
  training::Optimizer& optimizer() { return *optimizer_; }
  const training::TensorTable& parameters() const { return adapters_->table(); }
  const ResidentWeights& base() const { return *base_; }
  /// One run of a batch by the adapters as they are, or (frozen) of the base alone.
  Trace run(const Batch& batch, const RunOptions& options) const;
  Trace run_base(const Batch& batch, const RunOptions& options) const;
  /// As it was made by another side, in this side's types.
  void set_to(const training::Snapshot& state);

 private:
  RunOptions with_side(RunOptions options) const;

  SideOptions options_;
  std::string device_;
  ModelConfig config_;
  std::unique_ptr<SyntheticWeights> synthetic_;
  std::unique_ptr<ResidentWeights> base_;
  std::unique_ptr<training::LoraAdapters> adapters_;
  std::unique_ptr<Implementation> model_;
  std::unique_ptr<training::Optimizer> optimizer_;
  std::unique_ptr<training::Trainer> trainer_;
};

}  // namespace dsv32::harness
