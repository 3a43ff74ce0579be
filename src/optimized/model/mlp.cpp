#include <algorithm>
#include <numeric>

#include "src/optimized/model/layer.h"

namespace dsv32::optimized {

Tensor swiglu_mlp(const Context& ctx, const Tensor& x, Weights& weights, const std::string& prefix,
                  SwigluState& state) {
  state.gate = project(ctx, x, weights, prefix + "gate_proj.weight");
  state.up = project(ctx, x, weights, prefix + "up_proj.weight");
  state.inner = ctx.ops.call<Tensor(const Tensor&, const Tensor&)>("swiglu", state.gate, state.up);
  return project(ctx, state.inner, weights, prefix + "down_proj.weight");
}

Tensor swiglu_mlp_backward(const Context& ctx, const Tensor& dout, const Tensor& x,
                           Weights& weights, const std::string& prefix, const SwigluState& state,
                           const KeepGradient& keep) {
  const Tensor& down = weights.get(prefix + "down_proj.weight");
  keep(prefix + "down_proj.weight", linear_dweight(dout, state.inner));
  const auto [dgate, dup] =
      ctx.ops.call<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&)>(
          "swiglu_backward", linear_dx(dout, down), state.gate, state.up);
  keep(prefix + "gate_proj.weight", linear_dweight(dgate, x));
  keep(prefix + "up_proj.weight", linear_dweight(dup, x));
  return linear_dx(dgate, weights.get(prefix + "gate_proj.weight")) +
         linear_dx(dup, weights.get(prefix + "up_proj.weight"));
}

namespace {

constexpr const char* kShared = "mlp.shared_experts.";
constexpr const char* kGate = "mlp.gate.weight";

/// Own choice, and the weights of the choice in force.
void route(const Context& ctx, int64_t layer, Weights& weights, TapFlow& flow, MlpState& state) {
  const ModelConfig& c = ctx.config;
  const std::string tap = layer_tap(layer, "router.experts");
  Tensor experts;
  if (flow.replaying()) {
    experts = flow.decision(tap);
  } else {
    const auto [own, unused] = ctx.ops.call<std::tuple<Tensor, Tensor>(
        const Tensor&, const Tensor&, int64_t, int64_t, int64_t, bool, double)>(
        "route", state.logits.flatten(0, 1), weights.exact("mlp.gate.e_score_correction_bias"),
        c.n_group, c.topk_group, c.num_experts_per_tok, c.norm_topk_prob, c.routed_scaling_factor);
    experts = flow.decide(tap, own.to(at::kLong).view({state.y.size(0), state.y.size(1), -1}));
  }
  state.experts = experts.to(at::kInt).flatten(0, 1);
  const Tensor own = ctx.ops.call<Tensor(const Tensor&, const Tensor&, bool, double)>(
      "routing_weights", state.logits.flatten(0, 1), state.experts, c.norm_topk_prob,
      c.routed_scaling_factor);
  state.weights = flow.put(layer_tap(layer, "router.weights"), own.view_as(experts)).flatten(0, 1);
}

Tensor routed_at_once(const Context& ctx, Weights& weights, const MlpState& state) {
  const int64_t count = ctx.config.n_routed_experts;
  return ctx.ops.call<Tensor(const Tensor&, const Tensor&, const Tensor&, at::TensorList,
                             at::TensorList, at::TensorList)>(
      "moe", state.y.flatten(0, 1), state.experts, state.weights,
      weights.experts("gate_proj", count), weights.experts("up_proj", count),
      weights.experts("down_proj", count));
}

/// The experts that have tokens, in ascending id.
std::vector<int64_t> used_experts(const Context& ctx, const Tensor& experts) {
  const Tensor counts =
      at::bincount(experts.flatten().to(at::kCPU), {}, ctx.config.n_routed_experts);
  std::vector<int64_t> used;
  for (int64_t e = 0; e < ctx.config.n_routed_experts; ++e)
    if (counts[e].item<int64_t>() > 0) used.push_back(e);
  return used;
}

/// `experts` by their place among `group`, -1 for the others.
Tensor among(const std::vector<int64_t>& group, const Tensor& experts, int64_t count) {
  Tensor place = at::full({count}, -1, at::kInt);
  for (size_t i = 0; i < group.size(); ++i) place[group[i]] = static_cast<int64_t>(i);
  return place.to(experts.device()).index_select(0, experts.flatten()).view_as(experts);
}

Tensor routed_in_groups(const Context& ctx, const Weights& weights, const MlpState& state) {
  constexpr size_t kGroup = 8;
  const Tensor x = state.y.flatten(0, 1);
  const Tensor sum = at::zeros(x.sizes(), x.options().dtype(at::kFloat));
  const std::vector<int64_t> used = used_experts(ctx, state.experts);
  for (size_t first = 0; first < used.size(); first += kGroup) {
    const std::vector<int64_t> group(
        used.begin() + static_cast<std::ptrdiff_t>(first),
        used.begin() + static_cast<std::ptrdiff_t>(std::min(first + kGroup, used.size())));
    ctx.ops.call<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, at::TensorList,
                      at::TensorList, at::TensorList)>(
        "moe_add", sum, x, among(group, state.experts, ctx.config.n_routed_experts), state.weights,
        weights.some_experts("gate_proj", group), weights.some_experts("up_proj", group),
        weights.some_experts("down_proj", group));
  }
  return sum.to(x.scalar_type());
}

/// fp8 mode: expert after expert, each on its tokens.
Tensor routed_in_fp8(const Context& ctx, Weights& weights, const MlpState& state) {
  const Tensor x = state.y.flatten(0, 1);
  Tensor sum = at::zeros(x.sizes(), x.options().dtype(at::kFloat));
  for (const int64_t e : used_experts(ctx, state.experts)) {
    const auto places = (state.experts == e).nonzero();
    const Tensor token = places.select(1, 0), slot = places.select(1, 1);
    SwigluState unused;
    const Tensor y = swiglu_mlp(ctx, x.index_select(0, token), weights,
                                "mlp.experts." + std::to_string(e) + ".", unused);
    const Tensor weight = state.weights.index({token, slot}).unsqueeze(-1);
    sum = sum.index_add(0, token, y.to(at::kFloat) * weight);
  }
  return sum.to(x.scalar_type());
}

Tensor routed_experts(const Context& ctx, Weights& weights, const MlpState& state) {
  if (ctx.fp8) return routed_in_fp8(ctx, weights, state);
  return ctx.experts_in_groups ? routed_in_groups(ctx, weights, state)
                               : routed_at_once(ctx, weights, state);
}

}  // namespace

Tensor mlp_forward(const Context& ctx, int64_t layer, const Tensor& y, Weights& weights,
                   TapFlow& flow, MlpState& state) {
  const auto put = [&](const char* tap, const Tensor& own) {
    return flow.put(layer_tap(layer, tap), own);
  };
  state.y = y;
  if (ctx.config.is_dense_mlp(layer))
    return put("mlp.out", swiglu_mlp(ctx, y, weights, "mlp.", state.dense));
  state.logits = put("router.logits", linear(y.to(at::kFloat), weights.exact(kGate)));
  route(ctx, layer, weights, flow, state);
  const Tensor routed = routed_experts(ctx, weights, state);
  const Tensor kept = put("moe.routed", routed.view_as(y));
  const Tensor shared = put("moe.shared", swiglu_mlp(ctx, y, weights, kShared, state.dense));
  return put("mlp.out", kept + shared);
}

void mlp_again(const Context& ctx, int64_t layer, const Tensor& y, Weights& weights, TapFlow& flow,
               MlpState& state) {
  state.y = y;
  state.logits = linear(y.to(at::kFloat), weights.exact(kGate));
  route(ctx, layer, weights, flow, state);
}

void experts_backward(const Context& ctx, const ExpertRange& range, const Tensor& dout,
                      const Weights& weights, const MlpState& state, const KeepGradient& keep,
                      const RoutedGradients& sums) {
  std::vector<int64_t> group(static_cast<size_t>(range.last - range.first));
  std::iota(group.begin(), group.end(), range.first);
  using Lists = std::vector<Tensor>;
  const auto [dx, dweights, dgate, dup, ddown] =
      ctx.ops.call<std::tuple<Tensor, Tensor, Lists, Lists, Lists>(
          const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, at::TensorList,
          at::TensorList, at::TensorList)>(
          "moe_backward_add", sums.dx, dout.flatten(0, 1), state.y.flatten(0, 1),
          among(group, state.experts, ctx.config.n_routed_experts), state.weights,
          weights.some_experts("gate_proj", group), weights.some_experts("up_proj", group),
          weights.some_experts("down_proj", group));
  sums.dx.copy_(dx);
  sums.dweights.add_(dweights);  // zeros where another expert was chosen
  for (size_t i = 0; i < group.size(); ++i) {
    const std::string expert = "mlp.experts." + std::to_string(group[i]) + ".";
    keep(expert + "gate_proj.weight", dgate[i]);
    keep(expert + "up_proj.weight", dup[i]);
    keep(expert + "down_proj.weight", ddown[i]);
  }
}

Tensor rest_backward(const Context& ctx, int64_t layer, const Tensor& dout, Weights& weights,
                     const MlpState& state, const RoutedGradients& routed, const KeepGradient& keep,
                     TapFlow& flow) {
  const auto slope = [&](const char* tap, const Tensor& value) {
    flow.put_slope(layer_tap(layer, tap), value);
  };
  const ModelConfig& c = ctx.config;
  const Tensor& y = state.y;
  slope("mlp.out", dout);
  if (c.is_dense_mlp(layer))
    return swiglu_mlp_backward(ctx, dout, y, weights, "mlp.", state.dense, keep);
  slope("moe.shared", dout);
  const Tensor dlogits =
      ctx.ops.call<Tensor(const Tensor&, const Tensor&, const Tensor&, bool, double)>(
          "route_backward", routed.dweights, state.logits.flatten(0, 1), state.experts,
          c.norm_topk_prob, c.routed_scaling_factor);
  slope("router.weights", routed.dweights.view({y.size(0), y.size(1), -1}));
  slope("router.logits", dlogits.view({y.size(0), y.size(1), -1}));
  const Tensor rows = y.flatten(0, 1).to(at::kFloat);
  keep(kGate, linear_dweight(dlogits, rows));
  const Tensor drouter = linear_dx(dlogits, weights.exact(kGate)).to(y.scalar_type());
  const Tensor dshared = swiglu_mlp_backward(ctx, dout, y, weights, kShared, state.dense, keep);
  return dshared + (routed.dx + drouter).view_as(y);
}

Tensor mlp_backward(const Context& ctx, int64_t layer, const Tensor& dout, Weights& weights,
                    const MlpState& state, const KeepGradient& keep, TapFlow& flow) {
  const auto slope = [&](const char* tap, const Tensor& value) {
    flow.put_slope(layer_tap(layer, tap), value);
  };
  const ModelConfig& c = ctx.config;
  const Tensor& y = state.y;
  if (c.is_dense_mlp(layer)) return rest_backward(ctx, layer, dout, weights, state, {}, keep, flow);
  slope("moe.routed", dout);
  const int64_t count = c.n_routed_experts;
  using Lists = std::vector<Tensor>;
  const auto [dx, dweights, dgate, dup, ddown] =
      ctx.ops.call<std::tuple<Tensor, Tensor, Lists, Lists, Lists>(
          const Tensor&, const Tensor&, const Tensor&, const Tensor&, at::TensorList,
          at::TensorList, at::TensorList)>(
          "moe_backward", dout.flatten(0, 1), y.flatten(0, 1), state.experts, state.weights,
          weights.experts("gate_proj", count), weights.experts("up_proj", count),
          weights.experts("down_proj", count));
  for (int64_t e = 0; e < count; ++e) {
    const std::string expert = "mlp.experts." + std::to_string(e) + ".";
    keep(expert + "gate_proj.weight", dgate[e]);
    keep(expert + "up_proj.weight", dup[e]);
    keep(expert + "down_proj.weight", ddown[e]);
  }
  return rest_backward(ctx, layer, dout, weights, state, {dx, dweights}, keep, flow);
}

}  // namespace dsv32::optimized
