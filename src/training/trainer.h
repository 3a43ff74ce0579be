#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/model/case.h"
#include "src/model/implementation.h"
#include "src/training/optimizer.h"
#include "src/training/trainables.h"

namespace dsv32::training {

/// Which objective, which optimizers, which batches: one training run. Which parameters move is the
/// Trainables' and the groups' word.
struct Recipe {
  std::string name;  // of the golden's attribute `recipe`
  Objective objective = {};
  std::vector<Group> groups;
  int64_t steps = 0;
  /// Every step uses batch 0; else step t uses batch t mod 4 (docs/formats.md 2).
  bool memorised = false;
  int64_t micro_batches = 1;  // contiguous rows each; gradient = mean of their means
};

/// What one step saw and did.
struct StepRecord {
  double loss = 0;                // of the objective's LM part; mean over micro-batches
  double kl = 0;                  // mean over layers; 0 without a KL stage
  std::vector<double> grad_norm;  // per group, before clipping
  Trace decisions;                // topk and router.experts in force, of this process's rows
  TensorTable gradients;          // of this process's rows, after the mean
};

/// How the model is run in every step.
struct TrainerOptions {
  DType dtype = DType::float32;  // of the model; the master copies have the Trainables' type
  Dialect dialect = {};
  std::string device = "cpu";
  Bug bug = Bug::none;
  /// Rows [first, last) of every batch that this process computes; nullopt: all.
  std::optional<std::pair<int64_t, int64_t>> rows = {};
  std::function<void(const std::string&)> progress = {};
};

/// Runs a recipe step by step. `model` must read its weights from `trainables`.
class Trainer {
 public:
  Trainer(const Case& c, Recipe recipe, const Implementation& model, Trainables& trainables,
          Optimizer& optimizer, TrainerOptions options = {});
  /// Makes step `index` of the recipe. `decisions`: replayed when given, for the whole batch.
  StepRecord step(int64_t index, const Trace* decisions = nullptr);
  /// Does the same without the optimizer: losses, decisions and gradients; `grad_norm` stays empty.
  StepRecord measure(int64_t index, const Trace* decisions = nullptr);
  /// Does the optimizer's part of a measured step: fills in `grad_norm`.
  void apply(StepRecord& record);

 private:
  Batch batch_of(int64_t index) const;
  Trace run(const Batch& batch, const Trace* decisions) const;
  void add(const Trace& run, double share, StepRecord& record) const;
  void leave_gradients(TensorTable& gradients);
  void thaw_one(TensorTable& gradients) const;
  void decay_without_gradient(const TensorTable& gradients);

  Case case_;
  Recipe recipe_;
  const Implementation& model_;
  Trainables& trainables_;
  Optimizer& optimizer_;
  TrainerOptions options_;
  TensorTable left_over_;  // Bug::gradients_not_zeroed
};

/// Parameters and optimizer state at one moment, copied: for re-synchronisation and for saving.
struct Snapshot {
  TensorTable parameters;
  OptimizerState optimizer;
};
Snapshot take_snapshot(const Trainables& trainables, const Optimizer& optimizer);
/// Sets parameters and optimizer to a snapshot. Types are converted: a float64 snapshot sets
/// float32 masters to the nearest values.
void restore(const Snapshot& snapshot, Trainables& trainables, Optimizer& optimizer);

/// Cuts rows [first, last) out of a batch.
Batch slice_rows(const Batch& batch, int64_t first, int64_t last);
/// Rows [first, last) of micro-batch or rank `index` of `count`: contiguous, as even as can be.
std::pair<int64_t, int64_t> share_of_rows(int64_t rows, int64_t index, int64_t count);
/// Cuts the decisions of rows [first, last) out of the whole batch's.
Trace slice_decisions(const Trace& decisions, int64_t first, int64_t last);
/// Joins decisions of consecutive rows, in their order.
Trace join_decisions(const std::vector<Trace>& parts);

}  // namespace dsv32::training
