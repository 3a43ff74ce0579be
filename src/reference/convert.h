#pragma once

#include <cstdint>
#include <string>

#include "src/bridge/bridge.h"
#include "src/bridge/libtorch.h"

namespace dsv32::reference {

/// value * (1 + size * random sign), the signs a function of (seed, name): a probe of the oracle's
/// condition.
torch::Tensor perturbed(const torch::Tensor& value, double size, uint64_t seed,
                        const std::string& name);

/// The same with signs of its own from a Philox stream, 256 of them in a counter block: for what is
/// large.
torch::Tensor perturbed_by_counter(const torch::Tensor& value, double size, uint64_t seed,
                                   const std::string& name);

}  // namespace dsv32::reference
