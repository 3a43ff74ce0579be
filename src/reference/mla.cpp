#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// Splits kv_b [H*(nope+v), kv_lora] into per-head key and value maps [H,nope,kv_lora] and
/// [H,v,kv_lora].
std::pair<Tensor, Tensor> split_kv_b(const ModelConfig& config, const Tensor& kv_b) {
  const Tensor per_head =
      kv_b.unflatten(0, {config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim});
  return {per_head.narrow(1, 0, config.qk_nope_head_dim),
          per_head.narrow(1, config.qk_nope_head_dim, config.v_head_dim)};
}

Tensor partial_sums(const Tensor& x, const Tensor& weight, int parts) {
  Tensor sum;
  const auto x_parts = x.chunk(parts, -1), w_parts = weight.chunk(parts, -1);
  for (size_t i = x_parts.size(); i-- > 0;) {
    const Tensor part = torch::matmul(x_parts[i], w_parts[i].t());
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

}  // namespace

Tensor unrounded_linear(const Context& ctx, const Tensor& x, const Tensor& weight) {
  const int parts = ctx.dialect.linear.split_k;
  if (parts > 1) return partial_sums(x, weight.to(x.scalar_type()), parts);
  return product_with_weight(ctx.products(), x, weight);
}

Tensor linear(const Context& ctx, const Tensor& x, const Weight& weight) {
  const Fp8Variant& fp8 = ctx.dialect.fp8;
  if (!fp8.linear || fp8.input_exact)
    return ctx.rounding.stored(unrounded_linear(ctx, x, weight.value));
  if (!weight.codes.defined())  // moved by a probe
    return ctx.rounding.stored(unrounded_linear(ctx, through_fp8(ctx, x), weight.value));
  return ctx.rounding.stored(fp8_product(ctx, quantize(ctx, x, run_of_activations(ctx)), weight));
}

ExpandedKv expand_kv(const Context& ctx, const Tensor& kv_latent, const Weight& kv_b) {
  const ModelConfig& config = ctx.config;
  const int64_t heads = config.num_attention_heads, nope = config.qk_nope_head_dim;
  const Tensor rows = linear(ctx, kv_latent, kv_b);
  if (ctx.dialect.attention.kv_b_blocks)
    return {rows.narrow(-1, 0, heads * nope).unflatten(-1, {heads, nope}),
            rows.narrow(-1, heads * nope, heads * config.v_head_dim)
                .unflatten(-1, {heads, config.v_head_dim})};
  const Tensor kv = rows.unflatten(-1, {heads, nope + config.v_head_dim});
  return {kv.narrow(-1, 0, nope), kv.narrow(-1, nope, config.v_head_dim)};
}

AttentionOperands attention_operands(const Context& ctx, Tensor q_nope, Tensor q_rope,
                                     const Tensor& kv_latent, const Tensor& k_rope,
                                     const Weight& kv_b) {
  if (ctx.dialect.attention.absorbed) {
    const auto [key_map, value_map] = split_kv_b(ctx.config, kv_b);
    const Tensor q_latent_space = torch::einsum("bshn,hnc->bshc", {q_nope, key_map});
    return {torch::cat({q_latent_space, q_rope}, -1).transpose(1, 2),
            torch::cat({kv_latent, k_rope}, -1).unsqueeze(1), kv_latent.unsqueeze(1), value_map};
  }
  const Tensor q = torch::cat({q_nope, q_rope}, -1);
  q_nope = q_rope = Tensor();  // large at full size
  const ExpandedKv kv = expand_kv(ctx, kv_latent, kv_b);
  const Tensor k_rope_per_head = k_rope.unsqueeze(2).expand({-1, -1, kv.k_nope.size(2), -1});
  return {q.transpose(1, 2),
          torch::cat({kv.k_nope, k_rope_per_head}, -1).transpose(1, 2),
          kv.v.transpose(1, 2),
          {}};
}

Tensor attention_logits(const Context& ctx, const Tensor& q, const Tensor& k) {
  const Tensor products = ctx.rounding.stored(product(ctx.products(), q, k.transpose(-1, -2)));
  return products * softmax_scale(ctx.config, ctx.dialect.attention);
}

Tensor attention_probs(const Context& ctx, const Tensor& logits, const Tensor& support) {
  const Tensor sees_a_key = support.any(-1, /*keepdim=*/true);
  const Tensor kept =
      support | ~sees_a_key;  // a row without keys: softmax over anything, then zero
  const auto real = logits.options();
  const Tensor hidden = torch::full({}, -std::numeric_limits<double>::infinity(), real);
  const Tensor probs = softmax(ctx.sums, torch::where(kept, logits, hidden));
  return torch::where(support, probs, torch::zeros({}, real));
}

Tensor attention_context(const Context& ctx, const Tensor& probs,
                         const AttentionOperands& operands) {
  const Tensor rows = product(ctx.products(), probs, operands.v);  // [B,H,S,v], or of the latent
  if (!operands.value_map.defined()) return rows.transpose(1, 2);
  return torch::einsum("bhsc,hvc->bshv", {rows, operands.value_map});
}

}  // namespace dsv32::reference
