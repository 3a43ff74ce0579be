#include "src/optimized/ops/device.h"
#include "src/optimized/ops/select_topk.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

at::Tensor select_topk(const at::Tensor& scores, int64_t k, bool by_score) {
  return run_select_topk(scores, k, by_score, [&scores](const auto& params) {
    const DeviceScope device(scores);
    launch_select_topk(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) { m.impl("select_topk", &select_topk); }

}  // namespace dsv32::optimized::DSV32_BACKEND
