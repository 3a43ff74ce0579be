#include "src/optimized/ops/device.h"
#include "src/optimized/ops/fp8.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

at::Tensor fp8_dequant(const at::Tensor& codes, const at::Tensor& scales, at::ScalarType dtype) {
  const DeviceScope device(codes);
  return run_fp8_dequant(codes, scales, dtype,
                         [&](const auto& params) { launch_fp8_dequant(params, device.stream()); });
}

std::tuple<at::Tensor, at::Tensor> fp8_quant(const at::Tensor& x) {
  const DeviceScope device(x);
  return run_fp8_quant(x, [&](const auto& params) { launch_fp8_quant(params, device.stream()); });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("fp8_dequant", &fp8_dequant);
  m.impl("fp8_quant", &fp8_quant);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
