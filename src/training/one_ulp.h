#pragma once

#include <cstdint>
#include <string>

#include "src/model/weights.h"
#include "src/training/tensor_table.h"

namespace dsv32::training {

/// Weights of which every one is moved by one unit in the last place of float32, up or down by a
/// random bit of (seed, name, index): the start of a clean run that is not the golden's. Buffers
/// stay.
class OneUlpWeights : public WeightSource {
 public:
  /// Seed 0 moves nothing.
  OneUlpWeights(const WeightSource& base, uint64_t seed) : base_(base), seed_(seed) {}
  HostTensor load(const WeightSpec& spec) const override;
  std::string identity() const override;

 private:
  const WeightSource& base_;
  uint64_t seed_;
};

/// Moves every value of a float32 table but 0 to its next larger or smaller number, in place, by
/// random bits of (seed, name).
void move_one_ulp(TensorTable& table, uint64_t seed);

}  // namespace dsv32::training
