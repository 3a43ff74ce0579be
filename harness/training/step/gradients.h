#pragma once

#include <cstdint>
#include <vector>

#include "harness/training/step/recipe.h"
#include "harness/training/step/weights.h"
#include "src/model/case.h"
#include "src/model/trace.h"

namespace dsv32::harness {

/// The gradients of one micro-batch's own mean loss.
struct PartGradients {
  int64_t rank = 0, micro = 0, tokens = 0;  // tokens that count in its loss
  Tensors gradients;
  Trace below = {};  // of the weights that adapters are on
};

/// Of every rank and micro-batch of one step, in float64, at these weights. `decisions` of the
/// whole batch are replayed (nullptr: the run's own).
std::vector<PartGradients> step_gradients(const Case& c, const StepRecipe& recipe,
                                          const Trace* decisions, int64_t step,
                                          const StepWeights& weights);

}  // namespace dsv32::harness
