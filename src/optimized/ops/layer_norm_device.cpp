#include "src/optimized/ops/device.h"
#include "src/optimized/ops/layer_norm.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

using Triple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Triple layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  double eps) {
  return run_layer_norm(x, weight, bias, eps, [&x](const auto& params) {
    const DeviceScope device(x);
    launch_layer_norm(params, device.stream());
  });
}

Triple layer_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& mean, const at::Tensor& rstd) {
  return run_layer_norm_backward(dy, x, weight, mean, rstd, [&x](const auto& params) {
    const DeviceScope device(x);
    launch_layer_norm_backward(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("layer_norm", &layer_norm);
  m.impl("layer_norm_backward", &layer_norm_backward);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
