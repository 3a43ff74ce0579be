#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/training/bugs.h"
#include "src/training/tensor_table.h"

namespace dsv32::training {

struct AdamW {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.01;
};

/// One optimizer of a recipe and the parameters it moves.
struct Group {
  std::string name;  // "all", "lm", "indexer"
  AdamW adamw = {};
  std::optional<double> clip = {};  // global norm of the group's gradients, as torch clips
  std::function<bool(const std::string& parameter)> takes = {};  // empty: every parameter
};

/// Moments and step counts, whole (unsharded) tensors: "<group>/step" (int64 scalar), then
/// "<group>/<parameter>/exp_avg" and ".../exp_avg_sq" of every parameter that was ever stepped.
using OptimizerState = TensorTable;

/// Moves parameters by gradients: on one process, or sharded over many.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  /// Makes one step of every group. `gradients`: of this rank's rows; a parameter without an entry
  /// is not touched (a frozen one). Returns the global gradient norm before clipping, per group.
  /// The gradients are not changed.
  virtual std::vector<double> step(TensorTable& parameters, const TensorTable& gradients) = 0;
  /// Gives the state; it may share memory with the optimizer: clone it to keep it over a step.
  virtual OptimizerState state() const = 0;
  /// Copies a state; a parameter without an entry starts anew. Throws Error (artefact) where names
  /// or shapes do not fit.
  virtual void set_state(const OptimizerState& state) = 0;
};

/// Names of the parameters that a group moves, in table order.
std::vector<std::string> parameters_of(const Group& group, const TensorTable& parameters);

/// What one update reads and writes: the i-th of each list belong together.
struct AdamWTensors {
  std::vector<Tensor> parameters, gradients, exp_avg, exp_avg_sq;
};

/// An implementation's own kernels for the update of a whole group.
struct AdamWKernels {
  /// Gives the norm over all of them, [] float64.
  std::function<Tensor(const std::vector<Tensor>& gradients)> grad_norm = {};
  /// Makes update number `step` (from 1); gradients are multiplied by clip_scale, [] float32.
  std::function<void(const AdamWTensors&, const Tensor& clip_scale, int64_t step, const AdamW&)>
      update = {};
};

/// AdamW on one process, by torch::optim::AdamW or by `kernels`, which know no planted bug.
/// `parameters` is the very table that every step will be given.
std::unique_ptr<Optimizer> make_adamw(std::vector<Group> groups, const TensorTable& parameters,
                                      Bug bug = Bug::none, const AdamWKernels& kernels = {});

}  // namespace dsv32::training
