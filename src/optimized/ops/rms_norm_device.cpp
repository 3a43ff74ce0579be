#include "src/optimized/ops/device.h"
#include "src/optimized/ops/rms_norm.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

/// Launches on the device of `x`.
auto forward_on(const at::Tensor& x) {
  return [&x](const auto& params) {
    const DeviceScope device(x);
    launch_rms_norm(params, device.stream());
  };
}

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& x, const at::Tensor& weight,
                                            double eps) {
  const auto out = run_rms_norm("rms_norm", x, std::nullopt, weight, eps, forward_on(x));
  return {out.y, out.rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x,
                                                            const at::Tensor& residual,
                                                            const at::Tensor& weight, double eps) {
  const auto out = run_rms_norm("add_rms_norm", x, residual, weight, eps, forward_on(x));
  return {out.y, out.sum, out.rstd};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& dy, const at::Tensor& x,
                                                     const at::Tensor& weight,
                                                     const at::Tensor& rstd,
                                                     const std::optional<at::Tensor>& dsum) {
  return run_rms_norm_backward(dy, x, weight, rstd, dsum, [&x](const auto& params) {
    const DeviceScope device(x);
    launch_rms_norm_backward(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("rms_norm", &rms_norm);
  m.impl("add_rms_norm", &add_rms_norm);
  m.impl("rms_norm_backward", &rms_norm_backward);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
