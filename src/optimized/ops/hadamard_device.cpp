#include "src/optimized/ops/device.h"
#include "src/optimized/ops/hadamard.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

at::Tensor hadamard(const at::Tensor& x, double scale) {
  return run_hadamard(x, scale, [&x](const auto& params) {
    const DeviceScope device(x);
    launch_hadamard(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) { m.impl("hadamard", &hadamard); }

}  // namespace dsv32::optimized::DSV32_BACKEND
