#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// The first k per row under (value descending, index ascending); int64.
Tensor first_k(const Tensor& values, int64_t k) {
  const auto sorted = torch::sort(values, /*stable=*/true, -1, /*descending=*/true);
  return std::get<1>(sorted).narrow(-1, 0, k);
}

/// Biased scores with the experts of dropped groups filled. [B,S,E]
Tensor keep_best_groups(const Context& ctx, const Tensor& choice) {
  const ModelConfig& config = ctx.config;
  const Tensor grouped =
      choice.unflatten(-1, {config.n_group, config.n_routed_experts / config.n_group});
  const int64_t counted = ctx.dialect.router.group_score == GroupScore::max ? 1 : 2;
  const Tensor group_score =
      std::get<0>(grouped.topk(std::min(counted, grouped.size(-1)), -1)).sum(-1);
  const Tensor kept = torch::zeros_like(group_score, torch::kBool)
                          .scatter_(-1, first_k(group_score, config.topk_group), true);
  const double fill =
      ctx.dialect.router.group_fill_zero ? 0.0 : -std::numeric_limits<double>::infinity();
  return grouped.masked_fill(~kept.unsqueeze(-1), fill).flatten(-2);
}

}  // namespace

Tensor route(const Context& ctx, const Tensor& logits, const Tensor& bias) {
  const RouterVariant& variant = ctx.dialect.router;
  const Tensor scores = torch::sigmoid(logits);
  const Tensor choice = variant.bias_in_choice ? scores + bias : scores;
  const Tensor chosen = first_k(keep_best_groups(ctx, choice), ctx.config.num_experts_per_tok);
  const Tensor shifted = (chosen + variant.expert_id_shift).remainder(ctx.config.n_routed_experts);
  return std::get<0>(shifted.sort(-1));
}

Tensor routing_weights(const Context& ctx, const Tensor& logits, const Tensor& bias,
                       const Tensor& experts) {
  const RouterVariant& variant = ctx.dialect.router;
  Tensor scores = torch::sigmoid(logits);
  if (variant.bias_in_weights) scores = scores + bias;
  Tensor weights = scores.gather(-1, experts);
  if (variant.normalise && ctx.config.norm_topk_prob) {
    weights = weights / (weights.sum(-1, /*keepdim=*/true) + variant.norm_eps);
  }
  for (int i = 0; i < variant.scale_times; ++i)
    weights = weights * ctx.config.routed_scaling_factor;
  return variant.detach_weights ? weights.detach() : weights;
}

}  // namespace dsv32::reference
