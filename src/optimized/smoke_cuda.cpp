#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "src/optimized/smoke.h"

namespace dsv32::optimized {
namespace {

// x: [...] float32 on a device; the result has its shape.
at::Tensor smoke_add_one_cuda(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat, "smoke_add_one: x: expected float32, got ",
              x.scalar_type());
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor input = x.contiguous();
  at::Tensor output = at::empty_like(input);
  launch_smoke_add_one({.x = input.const_data_ptr<float>(),
                        .y = output.mutable_data_ptr<float>(),
                        .count = input.numel()},
                       c10::cuda::getCurrentCUDAStream().stream());
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(dsv32, CUDA, m) { m.impl("smoke_add_one", &smoke_add_one_cuda); }

}  // namespace dsv32::optimized
