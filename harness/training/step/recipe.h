#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/model/objective.h"

namespace dsv32::harness {

/// Values by weight name.
using Tensors = std::map<std::string, std::vector<double>>;

/// One optimizer.
struct StepGroup {
  std::string name;  // "all"; "lm" and "kl", which moves the indexer
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
};

/// The size of a gradient element, of its tensor's, below which it is rounding noise in float32.
constexpr double kStepNoise = 1e-3;

/// The recipe of a training golden, as its attribute says (docs/formats.md 10).
struct StepRecipe {
  int64_t micro_batches = 1, world = 1;  // per rank and step; ranks
  bool memorised = false;
  Objective objective = {};
  std::optional<double> clip = {};  // of each group's own norm
  std::vector<StepGroup> groups;
  double noise = kStepNoise;

  const StepGroup& group_of(const std::string& parameter) const;
};
/// Throws Error (artefact) for a recipe that is not as docs/formats.md 10 says.
StepRecipe read_step_recipe(const std::string& json, const std::string& where);

}  // namespace dsv32::harness
