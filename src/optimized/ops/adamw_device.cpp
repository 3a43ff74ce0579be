#include <cstring>

#include "src/optimized/ops/adamw.h"
#include "src/optimized/ops/device.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

/// The rows of a table where the kernels can read them.
template <typename Row>
at::Tensor on_device(const std::vector<Row>& rows, const at::Tensor& like) {
  const auto bytes = static_cast<int64_t>(rows.size() * sizeof(Row));
  const at::Tensor table = at::empty({bytes}, at::kByte);
  if (bytes > 0) std::memcpy(table.mutable_data_ptr(), rows.data(), bytes);
  return table.to(like.device());
}

void adamw(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avg,
           at::TensorList exp_avg_sq, int64_t step, double lr, double beta1, double beta2,
           double eps, double weight_decay, const at::Tensor& clip_scale) {
  const AdamwArguments arguments{parameters, gradients, exp_avg, exp_avg_sq, clip_scale};
  const AdamwOptions options{step, lr, beta1, beta2, eps, weight_decay};
  expect_adamw(arguments, options);
  if (gradients.empty()) return;
  const DeviceScope device(clip_scale);
  const std::vector<at::Tensor> rows = contiguous_each(gradients);
  dispatch_real({"adamw_", "grads", gradients[0]}, [&](auto type) {
    using G = decltype(type);
    const auto table = adamw_table<G>(arguments, rows);
    const at::Tensor tensors = on_device(table.rows, clip_scale);
    launch_adamw<G>({.tensors = pointer<AdamwTensor<G>>(tensors),
                     .clip_scale = pointer<float>(clip_scale),
                     .tensor_count = static_cast<int64_t>(table.rows.size()),
                     .chunks = table.chunks,
                     .factors = adamw_factors(options)},
                    device.stream());
  });
}

at::Tensor grad_norm(at::TensorList gradients) {
  at::Tensor norm = grad_norm_output(gradients);
  const std::vector<at::Tensor> rows = contiguous_each(gradients);
  const DeviceScope device(norm);
  dispatch_real({"grad_norm", "grads", rows[0]}, [&](auto type) {
    using G = decltype(type);
    const auto table = grad_norm_table<G>(rows);
    const at::Tensor tensors = on_device(table.rows, norm);
    const at::Tensor partial = empty_as(norm, {table.chunks}, at::kDouble);
    launch_grad_norm<G>({.tensors = pointer<GradNormTensor<G>>(tensors),
                         .partial = mutable_pointer<double>(partial),
                         .norm = mutable_pointer<double>(norm),
                         .tensor_count = static_cast<int64_t>(table.rows.size()),
                         .chunks = table.chunks},
                        device.stream());
  });
  return norm;
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("adamw_", &adamw);
  m.impl("grad_norm", &grad_norm);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
