#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "src/optimized/kernels/rope.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments (cos and sin [.., pairs] float32 for x [.., heads.., width], with the same
/// leading axes and width >= 2 pairs); returns y as x.
at::Tensor rope_output(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

/// `run(params)` takes RopeParams<float> and <bf16>.
template <typename Run>
at::Tensor run_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                    bool interleaved, bool inverse, Run run) {
  const at::Tensor y = rope_output(x, cos, sin);
  if (y.numel() == 0) return y;
  const at::Tensor x_rows = x.contiguous();
  const at::Tensor cos_rows = cos.contiguous(), sin_rows = sin.contiguous();
  const int64_t pairs = cos.size(-1), width = x.size(-1);
  int64_t tokens = 1;
  for (const int64_t size : cos.sizes().slice(0, cos.dim() - 1)) tokens *= size;
  dispatch_real({"rope", "x", x}, [&](auto type) {
    using T = decltype(type);
    run(RopeParams<T>{.x = pointer<T>(x_rows),
                      .cos = pointer<float>(cos_rows),
                      .sin = pointer<float>(sin_rows),
                      .y = mutable_pointer<T>(y),
                      .tokens = tokens,
                      .heads = x.numel() / tokens / width,
                      .width = width,
                      .pairs = pairs,
                      .interleaved = interleaved,
                      .inverse = inverse});
  });
  return y;
}

}  // namespace dsv32::optimized
