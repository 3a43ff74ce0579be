#include <algorithm>

#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// The first k per row under (value descending, index ascending); int64.
Tensor first_k(const Tensor& values, int64_t k) {
  const auto sorted = torch::sort(values, /*stable=*/true, -1, /*descending=*/true);
  return std::get<1>(sorted).narrow(-1, 0, k);
}

/// s of every expert.
Tensor expert_scores(const Context& ctx, const Tensor& logits) {
  return ctx.dialect.router.softmax ? torch::softmax(logits, -1) : torch::sigmoid(logits);
}

/// How many experts of a group its score sums.
int64_t counted_in_group(const Context& ctx) {
  const GroupScore score = ctx.dialect.router.group_score;
  if (score == GroupScore::share)
    return std::max<int64_t>(ctx.config.num_experts_per_tok / ctx.config.topk_group, 1);
  return score == GroupScore::max ? 1 : 2;
}

/// Biased scores with the experts of dropped groups filled. [B,S,E]
Tensor keep_best_groups(const Context& ctx, const Tensor& choice) {
  if (ctx.dialect.router.group_score == GroupScore::every_group) return choice;
  const ModelConfig& config = ctx.config;
  const Tensor grouped =
      choice.unflatten(-1, {config.n_group, config.n_routed_experts / config.n_group});
  const int64_t counted = counted_in_group(ctx);
  const int64_t groups = std::clamp<int64_t>(
      config.topk_group + ctx.dialect.router.topk_group_delta, 1, config.n_group);
  const Tensor group_score =
      std::get<0>(grouped.topk(std::min(counted, grouped.size(-1)), -1)).sum(-1);
  const Tensor kept =
      torch::zeros_like(group_score, torch::kBool).scatter_(-1, first_k(group_score, groups), true);
  const double fill =
      ctx.dialect.router.group_fill_zero ? 0.0 : -std::numeric_limits<double>::infinity();
  return grouped.masked_fill(~kept.unsqueeze(-1), fill).flatten(-2);
}

}  // namespace

Tensor route(const Context& ctx, const Tensor& logits, const Tensor& bias) {
  const RouterVariant& variant = ctx.dialect.router;
  const Tensor scores = expert_scores(ctx, logits);
  const Tensor added = variant.bias_in_bfloat16 ? bias.to(torch::kBFloat16).to(bias.dtype()) : bias;
  const Tensor choice = variant.bias_in_choice ? scores + added : scores;
  const Tensor chosen = first_k(keep_best_groups(ctx, choice), ctx.config.num_experts_per_tok);
  const Tensor shifted = (chosen + variant.expert_id_shift).remainder(ctx.config.n_routed_experts);
  return std::get<0>(shifted.sort(-1));
}

Tensor routing_weights(const Context& ctx, const Tensor& logits, const Tensor& bias,
                       const Tensor& experts) {
  const RouterVariant& variant = ctx.dialect.router;
  Tensor scores = expert_scores(ctx, logits);
  if (variant.bias_in_weights) scores = scores + bias;
  Tensor weights = scores.gather(-1, experts);
  if (variant.normalise && ctx.config.norm_topk_prob) {
    const Tensor& summed = variant.normalise_over_all ? scores : weights;
    weights = weights / (summed.sum(-1, /*keepdim=*/true) + variant.norm_eps);
  }
  for (int i = 0; i < variant.scale_times; ++i)
    weights = weights * ctx.config.routed_scaling_factor;
  return variant.detach_weights ? weights.detach() : weights;
}

}  // namespace dsv32::reference
