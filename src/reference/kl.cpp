#include <cmath>

#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// -inf off the support; a row without keys gets zeros, so that a softmax over it stays finite.
Tensor on_support(const Tensor& scores, const Tensor& support) {
  const Tensor sees_a_key = support.any(-1, /*keepdim=*/true);
  return scores.masked_fill(~support, -std::numeric_limits<double>::infinity())
      .masked_fill(~sees_a_key, 0);
}

/// Scores as the student reads them.
Tensor student_scores(const Context& ctx, const Tensor& scores) {
  if (ctx.dialect.kl.student_scaled) return scores;
  const double heads = static_cast<double>(ctx.config.index_n_heads);
  const double dim = static_cast<double>(ctx.config.index_head_dim);
  return scores * std::sqrt(heads * dim);
}

/// Where the logarithm counts; 1 elsewhere.
Tensor safe(const Tensor& p) { return p.masked_fill(p <= 0, 1); }

}  // namespace

Tensor kl_target(const Context& ctx, const Tensor& probs) {
  const KlVariant& variant = ctx.dialect.kl;
  const Tensor mass = variant.max_over_heads ? probs.amax(1) : probs.sum(1);  // [B,S,T]
  if (!variant.target_normalised) return mass;
  const Tensor total = row_sums(ctx.sums, mass);
  return mass / safe(total);
}

Tensor kl_student(const Context& ctx, const Tensor& scores, const Tensor& support) {
  const Tensor used = on_support(student_scores(ctx, scores), support);
  return softmax(ctx.sums, used).masked_fill(~support, 0);
}

Tensor kl_rows(const Context& ctx, const Tensor& target, const Tensor& scores,
               const Tensor& support) {
  const double epsilon = ctx.dialect.kl.log_epsilon;
  const Tensor used = on_support(student_scores(ctx, scores), support);
  Tensor log_student = log_softmax(ctx.sums, used);
  if (epsilon > 0) log_student = torch::log(log_student.exp() + epsilon);
  const Tensor entropy = torch::xlogy(target, safe(target) + epsilon);  // 0 log 0 = 0
  return row_sums(ctx.sums, entropy - target * log_student.masked_fill(~support, 0)).squeeze(-1);
}

Tensor kl_score_gradient(const Context& ctx, const Tensor& target, const Tensor& scores,
                         const Tensor& support) {
  torch::AutoGradMode grad(true);
  const Tensor leaf = scores.detach().clone().requires_grad_(true);
  const Tensor sum = kl_rows(ctx, target.detach(), leaf, support).sum();
  return torch::autograd::grad({sum}, {leaf})[0];
}

}  // namespace dsv32::reference
