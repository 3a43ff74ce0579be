#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "src/bridge/libtorch.h"
#include "src/model/tensor.h"

/// The one place where host tensors and torch tensors meet.
namespace dsv32 {

torch::ScalarType scalar_type(DType dtype);
/// The inverse of scalar_type; throws Error (internal) for a type that has no counterpart.
DType dtype_of(torch::ScalarType type);
/// Returns a view of the host tensor's memory (shared, kept alive by the result).
torch::Tensor to_torch(const HostTensor& tensor);
/// Makes the memory of a host tensor; empty: the heap.
using Room = std::function<HostTensor(DType, const Shape&)>;
/// Returns a host copy in this dtype.
HostTensor to_host(const torch::Tensor& tensor, DType dtype, const Room& room = {});
/// The token of the largest of the last query's logits [B,S,vocab], the first one of equals, by
/// row.
std::vector<int64_t> best_tokens(const torch::Tensor& logits);
/// Returns a host tensor of this dtype to read from: a view of the memory where that serves.
HostTensor seen_by_host(const torch::Tensor& tensor, DType dtype);

}  // namespace dsv32
