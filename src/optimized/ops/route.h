#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/route.h"
#include "src/optimized/ops/arguments.h"
#include "src/optimized/ops/indices.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// How experts are chosen: the config's n_group, topk_group, num_experts_per_tok, norm_topk_prob,
/// routed_scaling_factor.
struct Routing {
  int64_t n_group;
  int64_t topk_group;
  int64_t k;
  bool normalise;
  double scale;
};

/// Checks the arguments; returns experts [N,k] int32 and weights [N,k] float32, not filled.
std::tuple<at::Tensor, at::Tensor> route_outputs(const at::Tensor& logits, const at::Tensor& bias,
                                                 const Routing& routing);
/// Checks the arguments; returns weights [N,k] float32, not filled.
at::Tensor routing_weights_output(const char* op, const at::Tensor& logits,
                                  const at::Tensor& experts);
/// Checks the arguments; returns dlogits [N,E] float32, not filled.
at::Tensor route_backward_output(const at::Tensor& dweights, const at::Tensor& logits,
                                 const at::Tensor& experts);

/// `run(params)` takes RouteParams.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_route(const at::Tensor& logits, const at::Tensor& bias,
                                             const Routing& routing, Run run) {
  auto [experts, weights] = route_outputs(logits, bias, routing);
  const at::Tensor logit_rows = logits.contiguous(), bias_row = bias.contiguous();
  run(RouteParams{.logits = pointer<float>(logit_rows),
                  .bias = pointer<float>(bias_row),
                  .chosen = mutable_pointer<int32_t>(experts),
                  .weights = mutable_pointer<float>(weights),
                  .tokens = logits.size(0),
                  .experts = logits.size(1),
                  .groups = routing.n_group,
                  .kept_groups = routing.topk_group,
                  .k = routing.k,
                  .scale = static_cast<float>(routing.scale),
                  .normalise = routing.normalise});
  return {experts, weights};
}

/// `run(params)` takes RoutingWeightsParams.
template <typename Run>
at::Tensor run_routing_weights(const at::Tensor& logits, const at::Tensor& experts, bool normalise,
                               double scale, Run run) {
  at::Tensor weights = routing_weights_output("routing_weights", logits, experts);
  expect_indices({"routing_weights", "experts", experts}, logits.size(1));
  const at::Tensor logit_rows = logits.contiguous(), chosen = experts.contiguous();
  run(RoutingWeightsParams{.logits = pointer<float>(logit_rows),
                           .chosen = pointer<int32_t>(chosen),
                           .weights = mutable_pointer<float>(weights),
                           .tokens = logits.size(0),
                           .experts = logits.size(1),
                           .k = experts.size(1),
                           .scale = static_cast<float>(scale),
                           .normalise = normalise});
  return weights;
}

/// `run(params)` takes RouteBackwardParams.
template <typename Run>
at::Tensor run_route_backward(const at::Tensor& dweights, const at::Tensor& logits,
                              const at::Tensor& experts, bool normalise, double scale, Run run) {
  at::Tensor dlogits = route_backward_output(dweights, logits, experts);
  expect_indices({"route_backward", "experts", experts}, logits.size(1));
  const at::Tensor dweight_rows = dweights.contiguous(), logit_rows = logits.contiguous();
  const at::Tensor chosen = experts.contiguous();
  run(RouteBackwardParams{.dweights = pointer<float>(dweight_rows),
                          .logits = pointer<float>(logit_rows),
                          .chosen = pointer<int32_t>(chosen),
                          .dlogits = mutable_pointer<float>(dlogits),
                          .tokens = logits.size(0),
                          .experts = logits.size(1),
                          .k = experts.size(1),
                          .scale = static_cast<float>(scale),
                          .normalise = normalise});
  return dlogits;
}

}  // namespace dsv32::optimized
