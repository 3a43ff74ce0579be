#include "src/optimized/ops/route.h"

#include <algorithm>

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

void expect_range(const char* op, const char* name, int64_t value, int64_t highest) {
  TORCH_CHECK(value >= 1 && value <= highest, op, ": ", name, ": expected 1 to ", highest, ", got ",
              value);
}

Argument expect_logits(const char* op, const at::Tensor& logits) {
  const Argument source{op, "logits", logits};
  expect_dtype(source, at::kFloat);
  TORCH_CHECK(logits.dim() == 2, op, ": logits: expected 2 axes, got shape ", logits.sym_sizes());
  expect_at_most(source, 1, kRouteMaxExperts);
  return source;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> route_outputs(const at::Tensor& logits, const at::Tensor& bias,
                                                 const Routing& routing) {
  constexpr const char* op = "route";
  const Argument source = expect_logits(op, logits);
  const int64_t experts = logits.size(1);
  expect_dtype({op, "bias", bias}, at::kFloat);
  expect_device_of({op, "bias", bias}, source);
  expect_shape({op, "bias", bias}, {experts});
  expect_range(op, "n_group", routing.n_group, kRouteMaxGroups);
  TORCH_CHECK(experts % routing.n_group == 0, op, ": n_group: expected a divisor of ", experts,
              " experts, got ", routing.n_group);
  expect_range(op, "topk_group", routing.topk_group, routing.n_group);
  const int64_t open = experts / routing.n_group * routing.topk_group;
  expect_range(op, "k", routing.k, std::min(open, kRouteMaxChosen));
  const c10::SymInt tokens = logits.sym_size(0);
  return {empty_as(logits, {tokens, routing.k}, at::kInt),
          empty_as(logits, {tokens, routing.k}, at::kFloat)};
}

at::Tensor routing_weights_output(const char* op, const at::Tensor& logits,
                                  const at::Tensor& experts) {
  const Argument source = expect_logits(op, logits);
  const Argument chosen{op, "experts", experts};
  expect_dtype(chosen, at::kInt);
  expect_device_of(chosen, source);
  TORCH_CHECK(experts.dim() == 2, op, ": experts: expected 2 axes, got shape ",
              experts.sym_sizes());
  expect_shape(chosen, {logits.sym_size(0), experts.sym_size(1)});
  expect_at_most(chosen, 1, kRouteMaxChosen);
  return empty_as(logits, experts.sym_sizes(), at::kFloat);
}

at::Tensor route_backward_output(const at::Tensor& dweights, const at::Tensor& logits,
                                 const at::Tensor& experts) {
  constexpr const char* op = "route_backward";
  routing_weights_output(op, logits, experts);
  const Argument gradient{op, "dweights", dweights};
  expect_dtype(gradient, at::kFloat);
  expect_device_of(gradient, {op, "logits", logits});
  expect_shape(gradient, experts.sym_sizes());
  return empty_as(logits, logits.sym_sizes(), at::kFloat);
}

namespace {

std::tuple<at::Tensor, at::Tensor> route_meta(const at::Tensor& logits, const at::Tensor& bias,
                                              int64_t n_group, int64_t topk_group, int64_t k,
                                              bool normalise, double scale) {
  return route_outputs(logits, bias, {n_group, topk_group, k, normalise, scale});
}

at::Tensor routing_weights_meta(const at::Tensor& logits, const at::Tensor& experts, bool, double) {
  return routing_weights_output("routing_weights", logits, experts);
}

at::Tensor route_backward_meta(const at::Tensor& dweights, const at::Tensor& logits,
                               const at::Tensor& experts, bool, double) {
  return route_backward_output(dweights, logits, experts);
}

void schemas(torch::Library& m) {
  m.def(
      "route(Tensor logits, Tensor bias, int n_group, int topk_group, int k, bool normalise,"
      " float scale) -> (Tensor experts, Tensor weights)");
  m.def(
      "routing_weights(Tensor logits, Tensor experts, bool normalise, float scale)"
      " -> Tensor weights");
  m.def(
      "route_backward(Tensor dweights, Tensor logits, Tensor experts, bool normalise, float scale)"
      " -> Tensor dlogits");
}

void meta(torch::Library& m) {
  m.impl("route", &route_meta);
  m.impl("routing_weights", &routing_weights_meta);
  m.impl("route_backward", &route_backward_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
