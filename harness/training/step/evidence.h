#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "golden/reader/training_golden.h"
#include "harness/cases/candidate.h"
#include "harness/training/step/rules.h"
#include "harness/training/step/weights.h"

namespace dsv32::harness {

/// How far an update is from what a rule gives: beyond what the weights' own rounding makes of it.
struct Distance {
  double error = 0, size = 0, dot = 0, own = 0, rounding = 0;  // squares and products

  double relative() const;
  Distance& operator+=(const Distance& other);
};

/// What the first two steps of a training candidate did to its weights, and what their gradients
/// were, made anew at the weights that the candidate itself read.
class StepEvidence {
 public:
  struct Step {
    Parts parts;
    Tensors weights;  // that it read
  };
  using Names = std::vector<std::string>;

  StepEvidence(const Candidate& candidate, const golden::TrainingGolden& golden);

  /// Makes the gradients of step 0, and of step 1 where every update of step 0 is there.
  void collect();

  const Case& the_case() const { return candidate_.the_case; }
  const Candidate& candidate() const { return candidate_; }
  const StepRecipe& recipe() const { return recipe_; }
  /// In which the candidate computed.
  DType dtype() const { return dtype_; }
  /// In which this weight is stored: of a 16-bit candidate it may be float32.
  DType stored(const std::string& name) const;
  const std::vector<Step>& steps() const { return steps_; }
  const Names& names() const { return golden_.parameter_names; }
  const HostTensor* update(size_t step, const std::string& name) const;
  bool any_update(size_t step) const;

  /// What a rule makes of every step, on the candidate's own weights; `only` as StepOptimizer.
  std::vector<Updates> expected(const Rule& rule, const std::set<std::string>& only = {}) const;
  /// The same with gradients in place of the true ones: one Parts for each step.
  std::vector<Updates> expected(const std::vector<Parts>& parts) const;

  Distance distance(size_t step, const std::string& name, const Updates& expected) const;
  /// Over all tensors of one step.
  Distance distance(size_t step, const Updates& expected) const;
  /// Of the worst tensor, or of a step as a whole, in units of its limit.
  double worst(const std::vector<Updates>& expected) const;
  /// Elements of an update whose gradient says something.
  int64_t told(size_t step, const std::string& name, const Updates& expected) const;
  /// The right update times one number, if that is what it is.
  std::optional<double> gain(size_t step, const std::string& name, const Updates& expected) const;
  /// The same for all tensors of a step.
  std::optional<double> gain(size_t step, const Updates& expected) const;

 private:
  bool every_update(size_t step) const;
  Distance distance(size_t step, const std::string& name, const Updates& expected,
                    double gain) const;
  template <typename DistanceAt>
  std::optional<double> gain_by(const DistanceAt& distance_at) const;

  const Candidate& candidate_;
  const golden::TrainingGolden& golden_;
  StepRecipe recipe_;
  DType dtype_;
  std::map<std::string, DType> stored_;
  std::unique_ptr<StepWeights> weights_;
  std::vector<Step> steps_;
};

}  // namespace dsv32::harness
