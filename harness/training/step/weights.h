#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "harness/training/step/recipe.h"
#include "src/model/case.h"
#include "src/model/trace.h"
#include "src/model/weights.h"
#include "src/training/bugs.h"

namespace dsv32::harness {

/// What a training moves, as the judged side itself has it before a step, in float64: the model's
/// own weights, or the factors of adapters on frozen ones. As a WeightSource it is what the model
/// reads.
class StepWeights : public WeightSource {
 public:
  virtual std::vector<double> at(const std::string& name) const = 0;
  /// `stored`: the type that the weight is kept in.
  virtual void add(const std::string& name, const HostTensor& update,
                   DType stored = DType::float64) = 0;
  /// Of every moved tensor, from the gradients of a run by the weights that the model read.
  virtual Tensors gradients(const Trace& run) const = 0;
  /// Of that run, what the gradients of factors follow from; empty where there are none.
  virtual Trace below(const Trace& run) const = 0;
};

/// As the case starts them; adapters with B zero. Throws Error (artefact) for names that are
/// neither the case's weights nor all factors of its adapters.
std::unique_ptr<StepWeights> step_weights(const Case& c, const std::vector<std::string>& moved);

bool is_factor(const std::string& name);

/// The gradients of adapter factors with these values, from those of the adapted weights (`below`),
/// as a bug of training code has them.
Tensors factor_gradients(const Case& c, const Trace& below, const Tensors& factors,
                         training::Bug bug = training::Bug::none);

/// One of `world` ranks that split every adapted layer: by rows, as the columns of A are whole
/// there, and by columns.
struct LayerShare {
  int64_t rank = 0, world = 1;
};
/// The gradients of the replicated factors as one rank has them before the sum over the ranks: of
/// A from its rows of the layer, of B from its columns.
Tensors share_of_gradients(const Case& c, const Trace& below, const Tensors& factors,
                           const LayerShare& share);

}  // namespace dsv32::harness
