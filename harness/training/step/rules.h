#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "harness/training/step/gradients.h"

/// What may become of gradients on their way to the weights: AdamW as a recipe says, and as known
/// faults have it.
namespace dsv32::harness {

using Parts = std::vector<PartGradients>;

/// The mean over micro-batches and ranks of their own means (docs/formats.md 12).
Tensors mean_gradient(const Parts& parts, const StepRecipe& recipe);

enum class ClipBy { all, without_experts, each_group, none };

/// AdamW of the recipe, or what a fault makes of it.
struct Rule {
  Tensors (*reduce)(const Parts&, const StepRecipe&) = mean_gradient;
  bool keeps_gradients = false;  // those of the step before are added
  ClipBy clip = ClipBy::all;
  int64_t counted_before = 0;  // steps that the optimizer believes to have made
  bool corrects_bias = true;
  bool scales_decay = false;  // with the factor that takes the correction out of the rate
  bool decays = true;
  bool decay_in_gradient = false;
  bool swaps_betas = false;
  double sign = 1;
};

/// A fault between the gradients and the weights.
struct StepFault {
  const char* name;
  const char* words;
  Rule rule;
};

/// Faults that change every tensor alike.
const std::vector<StepFault>& step_faults();

/// The global norm of some tensors, and the factor that torch clips by.
double norm_of(const Tensors& gradients, const std::function<bool(const std::string&)>& takes);
double clip_factor(double clip, double norm);

/// What AdamW divides by is the gradient itself: of an element whose gradient is rounding noise
/// beside the others of its tensor, or beside epsilon, the update says nothing.
struct Updates {
  Tensors values;
  std::map<std::string, std::vector<bool>> tell;
};

/// AdamW under a rule: its moments over the steps. `only`: the tensors that the rule is about, the
/// others are stepped rightly; empty: all.
class StepOptimizer {
 public:
  StepOptimizer(const StepRecipe& recipe, const Rule& rule, std::set<std::string> only = {})
      : recipe_(recipe), rule_(rule), only_(std::move(only)) {}

  /// The updates of one step, from the gradients of its parts and the weights that it read.
  Updates step(const Parts& parts, const Tensors& weights);

 private:
  bool about(const std::string& name) const { return only_.empty() || only_.contains(name); }
  Tensors reduced(const Parts& parts) const;
  double clip_factor(const Tensors& gradients, const std::string& name) const;
  void update(const std::string& name, const std::vector<double>& gradient,
              const std::vector<double>& weight, double clipped, Updates& to);

  const StepRecipe& recipe_;
  Rule rule_;
  std::set<std::string> only_;
  int64_t count_ = 0;
  Tensors first_, second_, kept_;
};

}  // namespace dsv32::harness
