#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "src/optimized/kernels/rms_norm.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

struct RmsNormOutputs {
  at::Tensor y;     // as x
  at::Tensor sum;   // as x; undefined without residual
  at::Tensor rstd;  // x without its last axis, float32
};

/// Checks the arguments and makes the outputs.
RmsNormOutputs rms_norm_outputs(const char* op, const at::Tensor& x,
                                const std::optional<at::Tensor>& residual,
                                const at::Tensor& weight);

struct RmsNormGradients {
  at::Tensor dx;       // as x
  at::Tensor dweight;  // as weight, float32
};

RmsNormGradients rms_norm_gradients(const at::Tensor& dy, const at::Tensor& x,
                                    const at::Tensor& weight, const at::Tensor& rstd,
                                    const std::optional<at::Tensor>& dsum);

/// `run(params)` takes RmsNormParams<float> and <bf16>.
template <typename Run>
RmsNormOutputs run_rms_norm(const char* op, const at::Tensor& x,
                            const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                            double eps, Run run) {
  RmsNormOutputs out = rms_norm_outputs(op, x, residual, weight);
  const at::Tensor x_rows = x.contiguous(), weight_row = weight.contiguous();
  const at::Tensor residual_rows = contiguous(residual);
  dispatch_real({op, "x", x}, [&](auto type) {
    using T = decltype(type);
    run(RmsNormParams<T>{.x = pointer<T>(x_rows),
                         .residual = pointer<T>(residual_rows),
                         .weight = pointer<T>(weight_row),
                         .y = mutable_pointer<T>(out.y),
                         .sum = mutable_pointer<T>(out.sum),
                         .rstd = mutable_pointer<float>(out.rstd),
                         .rows = out.rstd.numel(),
                         .width = x.size(-1),
                         .eps = static_cast<float>(eps)});
  });
  return out;
}

/// `run(params)` takes RmsNormBackwardParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_rms_norm_backward(const at::Tensor& dy, const at::Tensor& x,
                                                         const at::Tensor& weight,
                                                         const at::Tensor& rstd,
                                                         const std::optional<at::Tensor>& dsum,
                                                         Run run) {
  RmsNormGradients out = rms_norm_gradients(dy, x, weight, rstd, dsum);
  const at::Tensor dy_rows = dy.contiguous(), x_rows = x.contiguous();
  const at::Tensor weight_row = weight.contiguous(), rstd_rows = rstd.contiguous();
  const at::Tensor dsum_rows = contiguous(dsum);
  const int64_t rows = rstd.numel(), width = x.size(-1);
  const at::Tensor partial = at::empty({rms_norm_partials(rows), width}, out.dweight.options());
  dispatch_real({"rms_norm_backward", "x", x}, [&](auto type) {
    using T = decltype(type);
    run(RmsNormBackwardParams<T>{.dy = pointer<T>(dy_rows),
                                 .x = pointer<T>(x_rows),
                                 .weight = pointer<T>(weight_row),
                                 .rstd = pointer<float>(rstd_rows),
                                 .dsum = pointer<T>(dsum_rows),
                                 .dx = mutable_pointer<T>(out.dx),
                                 .dweight = mutable_pointer<float>(out.dweight),
                                 .dweight_partial = mutable_pointer<float>(partial),
                                 .rows = rows,
                                 .width = width});
  });
  return {out.dx, out.dweight};
}

}  // namespace dsv32::optimized
