#include "src/optimized/ops/device.h"
#include "src/optimized/ops/route.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

std::tuple<at::Tensor, at::Tensor> route(const at::Tensor& logits, const at::Tensor& bias,
                                         int64_t n_group, int64_t topk_group, int64_t k,
                                         bool normalise, double scale) {
  const DeviceScope device(logits);
  return run_route(logits, bias, {n_group, topk_group, k, normalise, scale},
                   [&](const RouteParams& params) { launch_route(params, device.stream()); });
}

at::Tensor routing_weights(const at::Tensor& logits, const at::Tensor& experts, bool normalise,
                           double scale) {
  const DeviceScope device(logits);
  return run_routing_weights(
      logits, experts, normalise, scale,
      [&](const RoutingWeightsParams& params) { launch_routing_weights(params, device.stream()); });
}

at::Tensor route_backward(const at::Tensor& dweights, const at::Tensor& logits,
                          const at::Tensor& experts, bool normalise, double scale) {
  const DeviceScope device(logits);
  return run_route_backward(
      dweights, logits, experts, normalise, scale,
      [&](const RouteBackwardParams& params) { launch_route_backward(params, device.stream()); });
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("route", &route);
  m.impl("routing_weights", &routing_weights);
  m.impl("route_backward", &route_backward);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
