#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>

#include "src/bridge/bridge.h"

namespace dsv32::reference {

/// value * (1 + size * random sign), the signs a function of (seed, name): a probe of the oracle's
/// condition.
torch::Tensor perturbed(const torch::Tensor& value, double size, uint64_t seed,
                        const std::string& name);

}  // namespace dsv32::reference
