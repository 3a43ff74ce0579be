#include "src/optimized/ops/device.h"
#include "src/optimized/ops/swiglu.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  return run_swiglu(gate, up, [&gate](const auto& params) {
    const DeviceScope device(gate);
    launch_swiglu(params, device.stream());
  });
}

std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& dy, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  return run_swiglu_backward(dy, gate, up, [&gate](const auto& params) {
    const DeviceScope device(gate);
    launch_swiglu_backward(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("swiglu", &swiglu);
  m.impl("swiglu_backward", &swiglu_backward);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
