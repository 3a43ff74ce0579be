#include "src/optimized/ops/device.h"
#include "src/optimized/ops/embedding.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

at::Tensor embedding_backward(const at::Tensor& dout, const at::Tensor& ids, int64_t vocab) {
  const DeviceScope device(dout);
  return run_embedding_backward(dout, ids, vocab, [&](const auto& params) {
    launch_embedding_backward(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) { m.impl("embedding_backward", &embedding_backward); }

}  // namespace dsv32::optimized::DSV32_BACKEND
