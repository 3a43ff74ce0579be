#include "src/optimized/ops/device.h"
#include "src/optimized/ops/masked_mha.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

std::tuple<at::Tensor, at::Tensor> masked_mha(const at::Tensor& q, const at::Tensor& k_nope,
                                              const at::Tensor& k_rope, const at::Tensor& v,
                                              const at::Tensor& support, double scale) {
  const DeviceScope device(q);
  return run_masked_mha({q, k_nope, k_rope, v, support}, scale,
                        [&](const auto& params) { launch_masked_mha(params, device.stream()); });
}

MhaGradients masked_mha_backward(const at::Tensor& dout, const at::Tensor& out,
                                 const at::Tensor& lse, const at::Tensor& q,
                                 const at::Tensor& k_nope, const at::Tensor& k_rope,
                                 const at::Tensor& v, const at::Tensor& support, double scale) {
  const DeviceScope device(q);
  return run_masked_mha_backward(
      {dout, out, lse}, {q, k_nope, k_rope, v, support}, scale,
      [&](const auto& params) { launch_masked_mha_backward(params, device.stream()); });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("masked_mha", &masked_mha);
  m.impl("masked_mha_backward", &masked_mha_backward);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
