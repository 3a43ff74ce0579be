#include <algorithm>
#include <cmath>

#include "src/model/errors.h"
#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// A full-width table (f0,f0,f1,f1,...) cut to its first half.
RopeTable not_halved(const RopeTable& table) {
  const int64_t half = table.cos.size(-1);
  const auto widen = [half](const Tensor& t) {
    return t.repeat_interleave(2, -1).narrow(-1, 0, half);
  };
  return {widen(table.cos), widen(table.sin)};
}

/// Rotates the rope lanes of an indexer vector [B,S,(H,)D_I]; the other lanes pass through.
Tensor rotate_lanes(const Context& ctx, const Tensor& x, const RopeTable& table) {
  const IndexerVariant& variant = ctx.dialect.indexer;
  if (variant.rope_missing) return x;
  const int64_t rope = ctx.config.qk_rope_head_dim, rest = x.size(-1) - rope;
  const Tensor lanes = x.narrow(-1, variant.rope_first ? 0 : rest, rope);
  const Tensor pass = x.narrow(-1, variant.rope_first ? rope : 0, rest);
  const RopeTable used = in_sense(ctx.dialect.rope.angles_not_halved ? not_halved(table) : table,
                                  variant.rope_reversed);
  Tensor rotated;
  if (ctx.dialect.rope.angles_along_heads && x.dim() == 4) {
    if (x.size(1) != x.size(2)) {
      throw Error(ExitCode::usage,
                  {.where = "reference",
                   .what = "angles_along_heads",
                   .expected = "S = index_n_heads",
                   .got = std::to_string(x.size(1)) + " and " + std::to_string(x.size(2))});
    }
    // The table's second axis meets the heads: cos[b,h] is used where cos[b,s] is right. Needs S ==
    // H_I.
    rotated = rotate(ctx, lanes.transpose(1, 2), used, variant.rope).transpose(1, 2);
  } else {
    rotated = rotate(ctx, lanes, used, variant.rope);
  }
  return variant.rope_first ? torch::cat({rotated, pass}, -1) : torch::cat({pass, rotated}, -1);
}

/// One head's contribution to the scores: q [B,S,D], k [B,T,D], w [B,S] -> [B,S,T].
Tensor head_scores(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& w) {
  const Tensor products = product(ctx.products(ProductOf::index_scores), q, k.transpose(-1, -2));
  switch (ctx.dialect.indexer.relu) {
    case ReluPlace::before_weight:
      return w.unsqueeze(-1) * torch::relu(products);
    case ReluPlace::after_weight:
      return torch::relu(w.unsqueeze(-1) * products);
    case ReluPlace::after_sum:
    case ReluPlace::none:
      break;
  }
  return w.unsqueeze(-1) * products;
}

/// Queries or keys as the scores read them.
Tensor before_scores(const Context& ctx, const Tensor& x, bool is_query) {
  const IndexerVariant& variant = ctx.dialect.indexer;
  const bool rotated = variant.hadamard == Hadamard::both ||
                       (variant.hadamard == Hadamard::queries_only && is_query);
  if (!rotated) return x;
  if (!variant.hadamard_in_bfloat16) return ctx.rounding.stored(hadamard(x));
  const auto narrow = [&x](const Tensor& t) { return t.to(torch::kBFloat16).to(x.scalar_type()); };
  return narrow(hadamard(narrow(x)));
}

/// Queries or keys as fp8 mode caches them: rotated, rounded to bfloat16, one run to a vector.
Quantized index_codes(const Context& ctx, const Tensor& x) {
  const Tensor values = x.to(torch::kFloat32);
  const int64_t size = ctx.config.index_head_dim;
  return quantize(ctx, ctx.dialect.fp8.unrotated ? values : hadamard(values),
                  ctx.dialect.fp8.half_runs ? std::max<int64_t>(size / 2, 1) : size);
}

/// The weights of the heads as the scores read them.
Tensor used_weights(const Context& ctx, const Tensor& weights) {
  const HeadWeights variant = ctx.dialect.indexer.head_weights;
  if (variant == HeadWeights::unused) return torch::ones_like(weights);
  if (variant != HeadWeights::one) return weights;
  const auto size = static_cast<double>(ctx.config.index_n_heads * ctx.config.index_head_dim);
  return torch::full_like(weights, std::pow(size, -0.5));
}

/// s_k sum_j relu(q8_j . k8) (w_j s_q,j). docs/spec.md 1, fp8 mode.
Tensor fp8_index_scores(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& weights,
                        const Tensor& visible) {
  const Quantized query = index_codes(ctx, q), key = index_codes(ctx, k);
  const auto real = ctx.rounding.compute_type();
  const bool one_run = query.scales.size(-1) == 1;
  const Tensor q8 = (one_run ? query.codes : restored(query)).to(real);
  const Tensor k8 = (one_run ? key.codes : restored(key)).to(real);
  Tensor w = used_weights(ctx, weights);
  if (one_run) w = w * query.scales.squeeze(-1).to(real);
  Tensor scores = torch::zeros_like(visible, ctx.real());
  for (int64_t j = 0; j < q.size(2); ++j)
    scores = scores + head_scores(ctx, q8.select(2, j), k8, w.select(2, j));
  if (one_run) scores = scores * key.scales.squeeze(-1).to(real).unsqueeze(1);
  return scores.masked_fill(~visible, -std::numeric_limits<double>::infinity());
}

}  // namespace

Tensor index_query(const Context& ctx, const Tensor& q_latent, const Weight& wq_b,
                   const RopeTable& table) {
  const Tensor q = linear(ctx, q_latent, wq_b)
                       .unflatten(-1, {ctx.config.index_n_heads, ctx.config.index_head_dim});
  return rotate_lanes(ctx, q, table);
}

Tensor index_key(const Context& ctx, const Tensor& x, const Weight& wk, const Tensor& norm_weight,
                 const Tensor& norm_bias, const RopeTable& table) {
  const Tensor k = index_key_norm(ctx, linear(ctx, x, wk), norm_weight, norm_bias);
  return rotate_lanes(ctx, ctx.rounding.stored(k), table);
}

Tensor index_weights(const Context& ctx, const Tensor& x, const Tensor& weights_proj) {
  const IndexerVariant& variant = ctx.dialect.indexer;
  Tensor w = product_with_weight(ctx.products(), x, weights_proj);
  if (variant.head_weights == HeadWeights::sigmoid) w = torch::sigmoid(w);
  if (variant.scale_heads) w = w * std::pow(static_cast<double>(ctx.config.index_n_heads), -0.5);
  if (variant.scale_dim) w = w * std::pow(static_cast<double>(ctx.config.index_head_dim), -0.5);
  return w;
}

namespace {

/// Of all queries at once.
Tensor scores_of(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& weights,
                 const Tensor& visible) {
  if (ctx.dialect.fp8.indexer) return fp8_index_scores(ctx, q, k, weights, visible);
  const Tensor query = before_scores(ctx, q, true), key = before_scores(ctx, k, false);
  const Tensor w = used_weights(ctx, weights);
  Tensor scores = torch::zeros_like(visible, ctx.real());
  for (int64_t j = 0; j < q.size(2); ++j) {
    scores = scores + head_scores(ctx, query.select(2, j), key, w.select(2, j));
  }
  if (ctx.dialect.indexer.relu == ReluPlace::after_sum) scores = torch::relu(scores);
  if (ctx.dialect.selection.mask == Mask::added) return scores + visible;
  return scores.masked_fill(~visible, -std::numeric_limits<double>::infinity());
}

/// Keys behind the last one that any of these queries sees are not multiplied.
Tensor scores_of_block(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& weights,
                       const Tensor& visible) {
  const int64_t T = visible.size(-1);
  const Tensor seen = visible.any(1).any(0).nonzero();
  const bool all = ctx.dialect.selection.mask == Mask::added || seen.numel() == 0;
  const int64_t met = all ? T : seen.max().item<int64_t>() + 1;
  const Tensor scores = scores_of(ctx, q, k.narrow(1, 0, met), weights, visible.narrow(-1, 0, met));
  return torch::constant_pad_nd(scores, {0, T - met}, -std::numeric_limits<double>::infinity());
}

}  // namespace

Tensor index_scores(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& weights,
                    const Tensor& visible) {
  constexpr int64_t kAtOnce = int64_t{1} << 21;  // scores that stay in a cache, from head to head
  const int64_t S = q.size(1);
  const int64_t step = std::max<int64_t>(1, kAtOnce / (q.size(0) * visible.size(-1)));
  if (step >= S) return scores_of(ctx, q, k, weights, visible);
  std::vector<Tensor> blocks;
  for (int64_t first = 0; first < S; first += step) {
    const auto rows = [&](const Tensor& x) {
      return x.narrow(1, first, std::min(step, S - first));
    };
    blocks.push_back(scores_of_block(ctx, rows(q), k, rows(weights), rows(visible)));
  }
  return torch::cat(blocks, 1);
}

Tensor index_scores_per_head(const Context& ctx, const Tensor& q, const Tensor& k,
                             const Tensor& weights, const Tensor& visible) {
  std::vector<Tensor> heads;
  for (int64_t j = 0; j < q.size(2); ++j) {
    heads.push_back(head_scores(ctx, q.select(2, j), k, weights.select(2, j)));
  }
  const Tensor scores = torch::stack(heads, 2);
  return scores.masked_fill(~visible.unsqueeze(2), -std::numeric_limits<double>::infinity());
}

}  // namespace dsv32::reference
