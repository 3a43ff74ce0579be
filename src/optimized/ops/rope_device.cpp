#include "src/optimized/ops/device.h"
#include "src/optimized/ops/rope.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved,
                bool inverse) {
  return run_rope(x, cos, sin, interleaved, inverse, [&x](const auto& params) {
    const DeviceScope device(x);
    launch_rope(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) { m.impl("rope", &rope); }

}  // namespace dsv32::optimized::DSV32_BACKEND
