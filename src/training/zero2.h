#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "src/training/collective.h"
#include "src/training/optimizer.h"

namespace dsv32::training {

/// ZeRO-2 (Rajbhandari et al. 2020): every rank has all parameters; gradients are reduce-scattered,
/// each rank keeps the moments of its share alone and steps that share, then the parameters are
/// all-gathered. The gradient is the mean over ranks. Every call is collective, state() included.
class ShardedOptimizer : public Optimizer {
 public:
  /// Bytes of optimizer state that this rank holds.
  virtual int64_t state_bytes() const = 0;
  /// The mean over ranks of the last step's gradients, before clipping, as whole tensors.
  virtual TensorTable mean_gradients() const = 0;
};

/// Says what state_bytes must be: two moments for 1 / ranks of each group's elements, rounded up.
int64_t zero2_state_bytes(const std::vector<int64_t>& group_elements, int ranks,
                          int64_t element_size);

/// AdamW as in optimizer.h, sharded over `world`, which must outlive it. A parameter that has a
/// gradient on some ranks only counts as zero on the others. `parameters` is the very table that
/// every step will be given, equal on all ranks.
std::unique_ptr<ShardedOptimizer> make_zero2(const std::vector<Group>& groups,
                                             const TensorTable& parameters, World& world,
                                             Bug bug = Bug::none);

}  // namespace dsv32::training
