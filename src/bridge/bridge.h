#pragma once

#include <torch/torch.h>

#include "src/model/tensor.h"

/// The one place where host tensors and torch tensors meet.
namespace dsv32 {

torch::ScalarType scalar_type(DType dtype);
/// Inverse of scalar_type; throws Error (internal) for a type that has no counterpart.
DType dtype_of(torch::ScalarType type);
/// A view of the host tensor's memory (shared, kept alive by the result).
torch::Tensor to_torch(const HostTensor& tensor);
/// A host copy in this dtype.
HostTensor to_host(const torch::Tensor& tensor, DType dtype);

}  // namespace dsv32
