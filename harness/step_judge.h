#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/adamw_check.h"
#include "harness/training_side.h"

/// A training run judged step by step: before each judged step the judged side gets the oracle's
/// parameters and optimizer state, so that errors do not add up and the first bad step is the
/// origin.
namespace dsv32::harness {

/// What the float64 run made on its way.
struct OracleCurve {
  std::vector<double> loss, grad_norm;  // [steps]
};

/// The oracle (float64), the judged side and its clean float32 twin, whose weights are moved by one
/// ulp before each step: how far correct float32 code may be from the oracle.
class StepJudge {
 public:
  /// One optimizer group. `subject`: in the verdicts.
  StepJudge(const TrainingJob& job, const training::Recipe& recipe, std::string subject);

  /// One step of the oracle under these decisions (nullptr: the judged side's own). When `judged`,
  /// the same step of the judged side is compared: loss, gradients, gradient norm against the
  /// oracle's, and every parameter's update against AdamW's formula on the judged side's own
  /// gradient. (An update divides by the gradient's size: an element whose gradient is rounding
  /// noise says nothing when compared with the oracle's.)
  void step(int64_t index, const Trace* decisions, bool judged);

  const OracleCurve& curve() const { return curve_; }
  TrainingSide& oracle() { return oracle_; }
  /// "step by step" (which step and tap fail first), then one verdict per tap: its worst step.
  std::vector<Verdict> verdicts() const;

 private:
  /// One scalar of the judged steps.
  struct Scalar {
    std::vector<double> judged, oracle, twin;
  };
  /// A failure's place in the order of a step.
  struct Place {
    int64_t step = 0;
    size_t order = 0;
    std::string tap;
  };

  training::StepRecord judged_step(int64_t index, const Trace* decisions);
  void judge_gradients(int64_t index, const training::TensorTable& judged,
                       const training::TensorTable& oracle, const training::TensorTable& twin);
  Verdict gradient_verdict(const std::string& name, const training::TensorTable& judged,
                           const training::TensorTable& oracle,
                           const training::TensorTable& twin) const;
  void judge_updates(int64_t index, const training::StepRecord& judged);
  Verdict update_verdict(const std::string& name, const AdamWStep& step,
                         const training::Tensor& gradient,
                         const training::OptimizerState& before) const;
  Verdict untouched_verdict(const std::string& name) const;
  Verdict open(const std::string& tap) const;
  void keep(int64_t index, size_t order, Verdict verdict);
  Verdict scalar_verdict(const std::string& tap, const Scalar& scalar,
                         std::vector<int64_t>& bad) const;
  Verdict summary(const std::vector<Place>& failures) const;

  TrainingJob job_;
  training::Group group_;
  std::string subject_;
  Batch batch_;
  TrainingSide oracle_, judged_, twin_;
  OracleCurve curve_;
  std::vector<int64_t> steps_;  // judged ones
  Scalar loss_, grad_norm_;
  std::vector<std::string> order_;        // of taps
  std::map<std::string, Verdict> worst_;  // by tap
  std::vector<Place> failures_;
};

/// Global norm of the gradients, each tensor's in its own precision, as torch computes it.
double norm_of(const training::TensorTable& gradients);

}  // namespace dsv32::harness
