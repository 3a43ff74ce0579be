#include "src/optimized/ops/device.h"
#include "src/optimized/ops/fp8_linear.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

std::tuple<at::Tensor, at::Tensor> fp8_quant_runs(const at::Tensor& x, int64_t run, bool powers) {
  const DeviceScope device(x);
  return run_fp8_quant_runs(
      x, run, powers, [&](const auto& params) { launch_fp8_quant_runs(params, device.stream()); });
}

at::Tensor fp8_linear(const at::Tensor& x, const at::Tensor& x_scales, const at::Tensor& w,
                      const at::Tensor& w_scales, int64_t block_rows, int64_t run) {
  const DeviceScope device(x);
  return run_fp8_linear({x, x_scales, w, w_scales, block_rows, run},
                        [&](const auto& params) { launch_fp8_linear(params, device.stream()); });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("fp8_quant_runs", &fp8_quant_runs);
  m.impl("fp8_linear", &fp8_linear);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
