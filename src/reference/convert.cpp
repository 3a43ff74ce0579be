#include "src/reference/convert.h"

#include <cstring>

#include "src/model/errors.h"
#include "src/model/philox.h"

namespace dsv32::reference {

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
  throw Error(ExitCode::internal, {.where = "reference",
                                   .what = "dtype",
                                   .expected = "a known dtype",
                                   .got = std::to_string(static_cast<int>(dtype))});
}

torch::Tensor to_torch(const HostTensor& tensor) {
  HostTensor owner = tensor;  // shares the data; released with the torch tensor
  return torch::from_blob(
      owner.raw(), tensor.shape(), [owner](void*) {}, scalar_type(tensor.dtype()));
}

HostTensor to_host(const torch::Tensor& tensor, DType dtype) {
  const torch::Tensor plain = tensor.detach().to(torch::kCPU, scalar_type(dtype)).contiguous();
  HostTensor host(dtype, plain.sizes().vec());
  if (host.bytes() > 0)
    std::memcpy(host.raw(), plain.data_ptr(), static_cast<size_t>(host.bytes()));
  return host;
}

torch::Tensor perturbed(const torch::Tensor& value, double size, uint64_t seed,
                        const std::string& name) {
  auto generator = torch::make_generator<torch::CPUGeneratorImpl>(seed ^ fnv1a64(name));
  const torch::Tensor signs =
      torch::randint(0, 2, value.sizes(), generator, torch::kInt8).to(value.device());
  return torch::where(signs == 1, value * (1 + size), value * (1 - size));
}

}  // namespace dsv32::reference
