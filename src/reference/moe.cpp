#include "src/reference/ops.h"

namespace dsv32::reference {

Tensor swiglu_mlp(const Context& ctx, const Tensor& x, const Weight& gate, const Weight& up,
                  const Weight& down, bool silu) {
  const Tensor gated = linear(ctx, x, gate);
  const Tensor activated = silu ? torch::silu(gated) : gated;
  const Tensor inner = ctx.rounding.stored(ctx.rounding.cast(activated) * linear(ctx, x, up));
  return linear(ctx, inner, down);
}

Tensor routed_experts(const Context& ctx, const Tensor& x, const Tensor& experts,
                      const Tensor& weights, LayerWeights& layer) {
  const Tensor tokens = x.flatten(0, 1);        // [N,hidden]
  const Tensor chosen = experts.flatten(0, 1);  // [N,K]
  const Tensor weight = weights.flatten(0, 1);  // [N,K]
  Tensor sum = torch::zeros_like(tokens);
  for (int64_t e = 0; e < ctx.config.n_routed_experts; ++e) {
    const auto hits = torch::where(chosen == e);  // token and slot of each use
    if (hits[0].numel() == 0) continue;
    const auto weight_of = [&](const char* projection) {
      const Weight w = layer.get("mlp.experts." + std::to_string(e) + "." + projection + ".weight");
      return e == ctx.dialect.moe.dropped_gradient_expert ? Weight(w.value.detach()) : w;
    };
    const bool swapped = ctx.dialect.moe.swapped_routed;
    const Tensor y = swiglu_mlp(ctx, tokens.index_select(0, hits[0]),
                                weight_of(swapped ? "up_proj" : "gate_proj"),
                                weight_of(swapped ? "gate_proj" : "up_proj"),
                                weight_of("down_proj"), ctx.dialect.moe.silu_routed);
    const Tensor scaled = ctx.rounding.cast(y * weight.index({hits[0], hits[1]}).unsqueeze(-1));
    sum = ctx.rounding.cast(sum.index_add(0, hits[0], scaled));
  }
  return sum.view_as(x);
}

}  // namespace dsv32::reference
