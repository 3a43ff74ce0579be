#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "harness/training/suite.h"
#include "src/training/trainer.h"

/// What every training suite is built from. Torch comes in through src/training alone: for the
/// files of the training suites, not for the judge.
namespace dsv32::harness {

/// One side of a training comparison.
struct SideOptions {
  std::string name;  // "oracle", "reference float32": for the progress line
  std::string impl = "reference";
  DType dtype = DType::float32;  // of the model; masters are float64 for float64, else float32
  Dialect dialect = {};
  training::Bug bug = training::Bug::none;
  uint64_t ulp_seed = 0;  // other than 0: start weights moved by one ulp
};

/// Threads as for any run of the case; used by all sides.
void set_training_threads(const Case& c, const RunSettings& settings);
/// "case: side: where", and stops the run when asked to.
std::function<void(const std::string&)> side_progress(const Case& c, const std::string& side,
                                                      const RunSettings& settings);
/// Weights, model, optimizer and trainer of a full-parameter run, wired together. Start weights are
/// the case's synthetic ones.
class TrainingSide {
 public:
  TrainingSide(const TrainingJob& job, const training::Recipe& recipe, const SideOptions& options);

  training::StepRecord step(int64_t index, const Trace* decisions = nullptr) {
    return trainer_->step(index, decisions);
  }
  training::Trainer& trainer() { return *trainer_; }
  training::FullWeights& trainables() { return *trainables_; }
  const training::TensorTable& parameters() const { return trainables_->table(); }
  training::Optimizer& optimizer() { return *optimizer_; }
  const WeightSource& weights() const { return *trainables_; }
  const Implementation& model() const { return *model_; }
  /// The same weights, optimizer and recipe under another implementation.
  void use(const std::string& impl);
  /// Parameters and optimizer state become those of the other side, in this side's types.
  void set_to(const TrainingSide& other);

 private:
  const TrainingJob job_;
  const training::Recipe recipe_;
  SideOptions options_;
  SyntheticWeights synthetic_;
  std::unique_ptr<WeightSource> start_;
  std::unique_ptr<training::FullWeights> trainables_;
  std::unique_ptr<Implementation> model_;
  std::unique_ptr<training::Optimizer> optimizer_;
  std::unique_ptr<training::Trainer> trainer_;
};

}  // namespace dsv32::harness
