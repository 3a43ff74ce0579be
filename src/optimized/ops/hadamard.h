#pragma once

#include <ATen/ATen.h>

#include "src/optimized/kernels/hadamard.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments; returns y as x, not filled.
at::Tensor hadamard_output(const at::Tensor& x);

/// `run(params)` takes HadamardParams<float> and <bf16>.
template <typename Run>
at::Tensor run_hadamard(const at::Tensor& x, double scale, Run run) {
  const at::Tensor y = hadamard_output(x);
  const at::Tensor x_rows = x.contiguous();
  dispatch_real({"hadamard", "x", x}, [&](auto type) {
    using T = decltype(type);
    run(HadamardParams<T>{.x = pointer<T>(x_rows),
                          .y = mutable_pointer<T>(y),
                          .rows = x.numel() / x.size(-1),
                          .width = x.size(-1),
                          .scale = static_cast<float>(scale)});
  });
  return y;
}

}  // namespace dsv32::optimized
