#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "src/optimized/model/options.h"

/// The optimizer's ops, called through the dispatcher as the model calls its own.
namespace dsv32::optimized {

/// The norm over all gradients, [] float64. They are float32 or bf16, all alike.
at::Tensor grad_norm(Kernels kernels, at::TensorList gradients);

/// AdamW's numbers for update `step`, from 1.
struct AdamwNumbers {
  int64_t step = 1;
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
};

/// Makes one fused update in place. Parameters and moments are float32; gradients, times clip_scale
/// [] float32, float32 or bf16. The i-th of each list belong together.
void adamw_(Kernels kernels, at::TensorList parameters, at::TensorList gradients,
            at::TensorList exp_avg, at::TensorList exp_avg_sq, const AdamwNumbers& numbers,
            const at::Tensor& clip_scale);

}  // namespace dsv32::optimized
