#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/fp8_linear.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments; returns codes as `x` and scales [...,ceil(N/run)], float32, not filled.
std::tuple<at::Tensor, at::Tensor> fp8_quant_runs_outputs(const at::Tensor& x, int64_t run,
                                                          bool powers);

/// Codes and scales of an input [...,inner] and of a weight [outs,inner].
struct Fp8LinearOperands {
  at::Tensor x, x_scales, w, w_scales;
  int64_t block_rows, run;
};
/// Checks the arguments; returns y [...,outs] bfloat16, not filled.
at::Tensor fp8_linear_output(const Fp8LinearOperands& operands);

/// `run_kernel(params)` takes Fp8QuantRunsParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_fp8_quant_runs(const at::Tensor& x, int64_t run, bool powers,
                                                      Run run_kernel) {
  auto [codes, scales] = fp8_quant_runs_outputs(x, run, powers);
  const at::Tensor values = x.contiguous();
  if (x.numel() == 0) return {codes, scales};
  dispatch_real({"fp8_quant_runs", "x", x}, [&, &codes = codes, &scales = scales](auto type) {
    using T = decltype(type);
    run_kernel(Fp8QuantRunsParams<T>{.values = pointer<T>(values),
                                     .codes = mutable_pointer<uint8_t>(codes),
                                     .scales = mutable_pointer<float>(scales),
                                     .rows = x.numel() / x.size(-1),
                                     .columns = x.size(-1),
                                     .run = run,
                                     .powers = powers});
  });
  return {codes, scales};
}

/// `run_kernel(params)` takes Fp8LinearParams.
template <typename Run>
at::Tensor run_fp8_linear(const Fp8LinearOperands& o, Run run_kernel) {
  at::Tensor y = fp8_linear_output(o);
  const at::Tensor x = o.x.contiguous(), x_scales = o.x_scales.contiguous();
  const at::Tensor w = o.w.contiguous(), w_scales = o.w_scales.contiguous();
  if (y.numel() == 0) return y;
  run_kernel(Fp8LinearParams{.x = pointer<uint8_t>(x),
                             .x_scales = pointer<float>(x_scales),
                             .w = pointer<uint8_t>(w),
                             .w_scales = pointer<float>(w_scales),
                             .y = mutable_pointer<bf16>(y),
                             .rows = y.numel() / y.size(-1),
                             .outs = y.size(-1),
                             .inner = w.size(-1),
                             .block_rows = o.block_rows,
                             .run = o.run});
  return y;
}

}  // namespace dsv32::optimized
