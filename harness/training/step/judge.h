#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/judge/adamw.h"
#include "harness/training/side.h"

/// A training run judged step by step: before each judged step the judged side gets the oracle's
/// parameters and optimizer state, so that errors do not add up and the first bad step is the
/// origin.
namespace dsv32::harness {

/// What the float64 run made on its way.
struct OracleCurve {
  std::vector<double> loss, grad_norm;  // [steps]
};

/// The oracle (float64), the judged implementations one after the other, and a clean float32 twin,
/// whose weights are moved by one ulp before each step: how far correct float32 code may be from
/// the oracle.
class StepJudge {
 public:
  /// One optimizer group. `note`: behind the subjects in the verdicts.
  StepJudge(const TrainingJob& job, const training::Recipe& recipe, const std::string& note);

  /// One step of the oracle under these decisions (nullptr: the first implementation's own). When
  /// `judged`, the same step of every implementation is compared: loss, gradients, gradient norm
  /// against the oracle's, and every parameter's update against AdamW's formula on its own
  /// gradient. (An update divides by the gradient's size: an element whose gradient is rounding
  /// noise says nothing when compared with the oracle's.)
  void step(int64_t index, const Trace* decisions, bool judged);

  const OracleCurve& curve() const { return curve_; }
  TrainingSide& oracle() { return oracle_; }
  /// Of each implementation: "steps" (which step and tap fail first), then one verdict per
  /// tap: its worst step.
  [[nodiscard]] std::vector<Verdict> verdicts() const;

 private:
  /// A failure's place in the order of a step.
  struct Place {
    int64_t step = 0;
    size_t order = 0;
    std::string tap;
  };
  /// One implementation: scalars of the judged steps, verdicts by tap.
  struct Pupil {
    std::string impl;
    Subject subject;
    std::vector<double> loss, grad_norm;
    std::vector<std::string> order;        // of taps
    std::map<std::string, Verdict> worst;  // by tap
    std::vector<Place> failures;

    void keep(int64_t index, size_t place, Verdict verdict);
  };
  /// One scalar of oracle and twin in the judged steps.
  struct Scalar {
    std::vector<double> oracle, twin;
  };

  training::StepRecord judged_step(const Pupil& pupil, int64_t index, const Trace* decisions);
  void judge_step(Pupil& pupil, int64_t index, const training::StepRecord& own,
                  const training::StepRecord& oracle, const training::StepRecord& twin);
  void judge_gradients(Pupil& pupil, int64_t index, const training::TensorTable& judged,
                       const training::TensorTable& oracle, const training::TensorTable& twin);
  Verdict gradient_verdict(const Pupil& pupil, const std::string& name,
                           const training::TensorTable& judged, const training::TensorTable& oracle,
                           const training::TensorTable& twin) const;
  void judge_updates(Pupil& pupil, int64_t index, const training::StepRecord& judged);
  Verdict update_verdict(const Pupil& pupil, const std::string& name, const AdamWStep& step,
                         const training::Tensor& gradient,
                         const training::OptimizerState& before) const;
  Verdict untouched_verdict(const Pupil& pupil, const std::string& name) const;
  Verdict open(const Pupil& pupil, const std::string& tap) const;
  Verdict scalar_verdict(const Pupil& pupil, const std::string& tap,
                         const std::vector<double>& judged, const Scalar& scalar,
                         std::vector<int64_t>& bad) const;
  Verdict summary(const Pupil& pupil, const std::vector<Place>& failures) const;
  void add_verdicts(const Pupil& pupil, std::vector<Verdict>& all) const;

  TrainingJob job_;
  training::Group group_;
  Batch batch_;
  TrainingSide oracle_, judged_, twin_;
  std::vector<Pupil> pupils_;
  OracleCurve curve_;
  std::vector<int64_t> steps_;  // judged ones
  Scalar loss_, grad_norm_;
};

}  // namespace dsv32::harness
