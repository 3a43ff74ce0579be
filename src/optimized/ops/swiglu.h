#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "src/optimized/kernels/swiglu.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments; returns y as gate, not filled.
at::Tensor swiglu_output(const at::Tensor& gate, const at::Tensor& up);

/// Checks the arguments; returns dgate and dup as gate, not filled.
std::tuple<at::Tensor, at::Tensor> swiglu_gradients(const at::Tensor& dy, const at::Tensor& gate,
                                                    const at::Tensor& up);

/// `run(params)` takes SwigluParams<float> and <bf16>.
template <typename Run>
at::Tensor run_swiglu(const at::Tensor& gate, const at::Tensor& up, Run run) {
  const at::Tensor y = swiglu_output(gate, up);
  const at::Tensor gates = gate.contiguous(), ups = up.contiguous();
  dispatch_real({"swiglu", "gate", gate}, [&](auto type) {
    using T = decltype(type);
    run(SwigluParams<T>{.gate = pointer<T>(gates),
                        .up = pointer<T>(ups),
                        .y = mutable_pointer<T>(y),
                        .count = gate.numel()});
  });
  return y;
}

/// `run(params)` takes SwigluBackwardParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_swiglu_backward(const at::Tensor& dy, const at::Tensor& gate,
                                                       const at::Tensor& up, Run run) {
  const auto out = swiglu_gradients(dy, gate, up);
  const auto& [dgate, dup] = out;
  const at::Tensor dys = dy.contiguous(), gates = gate.contiguous(), ups = up.contiguous();
  dispatch_real({"swiglu_backward", "gate", gate}, [&](auto type) {
    using T = decltype(type);
    run(SwigluBackwardParams<T>{.dy = pointer<T>(dys),
                                .gate = pointer<T>(gates),
                                .up = pointer<T>(ups),
                                .dgate = mutable_pointer<T>(dgate),
                                .dup = mutable_pointer<T>(dup),
                                .count = gate.numel()});
  });
  return out;
}

}  // namespace dsv32::optimized
