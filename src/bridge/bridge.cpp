#include "src/bridge/bridge.h"

#include "src/model/errors.h"

namespace dsv32 {

torch::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return torch::kFloat64;
    case DType::float32:
      return torch::kFloat32;
    case DType::bfloat16:
      return torch::kBFloat16;
    case DType::float16:
      return torch::kFloat16;
    case DType::int64:
      return torch::kInt64;
    case DType::int32:
      return torch::kInt32;
    case DType::uint8:
      return torch::kUInt8;
  }
  throw Error(ExitCode::internal, {.where = "bridge",
                                   .what = "dtype",
                                   .expected = "a known dtype",
                                   .got = std::to_string(static_cast<int>(dtype))});
}

DType dtype_of(torch::ScalarType type) {
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16,
                            DType::int64, DType::int32, DType::uint8})
    if (scalar_type(dtype) == type) return dtype;
  throw Error(ExitCode::internal, {.where = "bridge",
                                   .what = "torch type",
                                   .expected = "one that a host tensor can have",
                                   .got = torch::toString(type)});
}

torch::Tensor to_torch(const HostTensor& tensor) {
  HostTensor owner = tensor;  // shares the data; released with the torch tensor
  return torch::from_blob(
      owner.raw(), tensor.shape(), [owner](void*) {}, scalar_type(tensor.dtype()));
}

HostTensor to_host(const torch::Tensor& tensor, DType dtype, const Room& room) {
  const Shape shape = tensor.sizes().vec();
  HostTensor host = room ? room(dtype, shape) : HostTensor(dtype, shape);
  if (host.bytes() > 0) to_torch(host).copy_(tensor.detach());
  return host;
}

std::vector<int64_t> best_tokens(const torch::Tensor& logits) {
  const torch::Tensor last = logits.detach().select(1, logits.size(1) - 1).cpu();
  const torch::Tensor largest = std::get<0>(last.max(-1, /*keepdim=*/true));
  std::vector<int64_t> tokens;
  for (int64_t b = 0; b < last.size(0); ++b) {  // of all NaN: token 0, and the judge sees the NaN
    const torch::Tensor places = (last[b] == largest[b]).nonzero();
    tokens.push_back(places.size(0) == 0 ? 0 : places[0].item<int64_t>());
  }
  return tokens;
}

HostTensor seen_by_host(const torch::Tensor& tensor, DType dtype) {
  const torch::Tensor plain = tensor.detach().to(torch::kCPU, scalar_type(dtype)).contiguous();
  // Released with the host tensor, which only reads.
  const std::shared_ptr<std::byte[]> memory(static_cast<std::byte*>(plain.data_ptr()),
                                            [plain](std::byte*) {});
  return HostTensor::over(memory, dtype, plain.sizes().vec());
}

}  // namespace dsv32
