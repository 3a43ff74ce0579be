#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/layer_norm.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments; returns y as x, mean and rstd as x without its last axis, float32.
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_outputs(const at::Tensor& x,
                                                                  const at::Tensor& weight,
                                                                  const at::Tensor& bias);

/// Checks the arguments; returns dx as x, dweight and dbias as weight, float32.
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_gradients(const at::Tensor& dy,
                                                                    const at::Tensor& x,
                                                                    const at::Tensor& weight,
                                                                    const at::Tensor& mean,
                                                                    const at::Tensor& rstd);

/// `run(params)` takes LayerNormParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor, at::Tensor> run_layer_norm(const at::Tensor& x,
                                                              const at::Tensor& weight,
                                                              const at::Tensor& bias, double eps,
                                                              Run run) {
  const auto out = layer_norm_outputs(x, weight, bias);
  const auto& [y, mean, rstd] = out;
  const at::Tensor x_rows = x.contiguous();
  const at::Tensor weight_row = weight.contiguous(), bias_row = bias.contiguous();
  const int64_t rows = rstd.numel(), width = x.size(-1);
  dispatch_real({"layer_norm", "x", x}, [&](auto type) {
    using T = decltype(type);
    run(LayerNormParams<T>{.x = pointer<T>(x_rows),
                           .weight = pointer<T>(weight_row),
                           .bias = pointer<T>(bias_row),
                           .y = mutable_pointer<T>(y),
                           .mean = mutable_pointer<float>(mean),
                           .rstd = mutable_pointer<float>(rstd),
                           .rows = rows,
                           .width = width,
                           .eps = static_cast<float>(eps)});
  });
  return out;
}

/// `run(params)` takes LayerNormBackwardParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor, at::Tensor> run_layer_norm_backward(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& rstd, Run run) {
  const auto out = layer_norm_gradients(dy, x, weight, mean, rstd);
  const auto& [dx, dweight, dbias] = out;
  const at::Tensor dy_rows = dy.contiguous(), x_rows = x.contiguous();
  const at::Tensor weight_row = weight.contiguous();
  const at::Tensor mean_rows = mean.contiguous(), rstd_rows = rstd.contiguous();
  const int64_t rows = rstd.numel(), width = x.size(-1);
  const at::Tensor partial = at::empty({2, layer_norm_partials(rows), width}, dweight.options());
  dispatch_real({"layer_norm_backward", "x", x}, [&](auto type) {
    using T = decltype(type);
    run(LayerNormBackwardParams<T>{.dy = pointer<T>(dy_rows),
                                   .x = pointer<T>(x_rows),
                                   .weight = pointer<T>(weight_row),
                                   .mean = pointer<float>(mean_rows),
                                   .rstd = pointer<float>(rstd_rows),
                                   .dx = mutable_pointer<T>(dx),
                                   .dweight = mutable_pointer<float>(dweight),
                                   .dbias = mutable_pointer<float>(dbias),
                                   .dweight_partial = mutable_pointer<float>(partial.select(0, 0)),
                                   .dbias_partial = mutable_pointer<float>(partial.select(0, 1)),
                                   .rows = rows,
                                   .width = width});
  });
  return out;
}

}  // namespace dsv32::optimized
