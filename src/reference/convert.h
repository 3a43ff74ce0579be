#pragma once

#include <torch/torch.h>

#include <string>

#include "src/model/tensor.h"

namespace dsv32::reference {

torch::ScalarType scalar_type(DType dtype);
/// A view of the host tensor's memory (shared, kept alive by the result).
torch::Tensor to_torch(const HostTensor& tensor);
/// A host copy in this dtype.
HostTensor to_host(const torch::Tensor& tensor, DType dtype);

/// value * (1 + size * random sign), the signs a function of (seed, name): a probe of the oracle's
/// condition.
torch::Tensor perturbed(const torch::Tensor& value, double size, uint64_t seed,
                        const std::string& name);

}  // namespace dsv32::reference
