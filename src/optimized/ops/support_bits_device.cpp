#include "src/optimized/ops/device.h"
#include "src/optimized/ops/support_bits.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

at::Tensor support_bits(const at::Tensor& topk, int64_t keys) {
  const DeviceScope device(topk);
  return run_support_bits(topk, keys, [&](const SupportBitsParams& params) {
    launch_support_bits(params, device.stream());
  });
}

at::Tensor visible_bits(const at::Tensor& mask, int64_t queries, int64_t first_query) {
  const DeviceScope device(mask);
  return run_visible_bits(mask, queries, first_query, [&](const VisibleBitsParams& params) {
    launch_visible_bits(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("support_bits", &support_bits);
  m.impl("visible_bits", &visible_bits);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
