#include "src/reference/ops.h"

namespace dsv32::reference {

std::string other_half(const std::string& projection) {
  if (projection == "gate_proj") return "up_proj";
  return projection == "up_proj" ? "gate_proj" : projection;
}

Tensor swiglu_mlp(const Context& ctx, const Tensor& x, const ProjectionSource& weight_of,
                  bool silu) {
  Tensor inner = linear(ctx, x, weight_of("gate_proj"));
  inner = ctx.rounding.cast(silu ? torch::silu(inner) : inner);
  inner = ctx.rounding.stored(inner * linear(ctx, x, weight_of("up_proj")));
  return linear(ctx, inner, weight_of("down_proj"));
}

namespace {

/// `sum` with `rows` at these tokens, rounded. In place where no gradient is asked for: at full
/// size a copy for each expert takes as long as the experts.
Tensor added(const Context& ctx, const Tensor& sum, const Tensor& tokens, const Tensor& rows) {
  if (torch::GradMode::is_enabled()) return ctx.rounding.cast(sum.index_add(0, tokens, rows));
  sum.index_add_(0, tokens, rows);
  return ctx.rounding.like_transformers()
             ? sum.index_copy_(0, tokens, ctx.rounding.cast(sum.index_select(0, tokens)))
             : sum;
}

}  // namespace

Tensor expert_rows(const Context& ctx, int64_t expert, const Tensor& rows, const Tensor& weights,
                   LayerWeights& layer) {
  const MoeVariant& variant = ctx.dialect.moe;
  const auto weight_of = [&](const char* meant) {
    const std::string projection = variant.swapped_routed ? other_half(meant) : meant;
    const Weight w =
        layer.get("mlp.experts." + std::to_string(expert) + "." + projection + ".weight");
    return expert == variant.dropped_gradient_expert ? Weight(w.value.detach()) : w;
  };
  const Tensor y = swiglu_mlp(ctx, rows, weight_of, variant.silu_routed);
  return ctx.rounding.cast(y * weights.unsqueeze(-1));
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
    const Tensor rows = expert_rows(ctx, e, tokens.index_select(0, hits[0]),
                                    weight.index({hits[0], hits[1]}), layer);
    sum = added(ctx, sum, hits[0], rows);
  }
  return sum.view_as(x);
}

}  // namespace dsv32::reference
