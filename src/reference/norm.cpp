#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// Over the last axis, which stays with size 1.
Tensor mean(const Context& ctx, const Tensor& x) {
  return row_sums(ctx.sums, x) / static_cast<double>(x.size(-1));
}

}  // namespace

Tensor rms_norm(const Context& ctx, const Tensor& x, const Tensor& weight, double eps) {
  const Tensor read = ctx.dialect.norm.subtracts_mean ? x - mean(ctx, x) : x;
  const Tensor mean_square = mean(ctx, read.pow(2));
  const Tensor normed = read * torch::rsqrt(mean_square + eps);
  const Tensor factor = ctx.dialect.norm.weight_plus_one ? weight + 1 : weight;
  return factor * ctx.rounding.cast(normed);
}

Tensor index_key_norm(const Context& ctx, const Tensor& x, const Tensor& weight,
                      const Tensor& bias) {
  const IndexerVariant& variant = ctx.dialect.indexer;
  if (variant.k_norm == KNorm::rms_norm) return rms_norm(ctx, x, weight, variant.eps_k_norm);
  if (variant.k_norm == KNorm::none) return x;
  const Tensor centred = x - mean(ctx, x);
  const Tensor variance = mean(ctx, centred.pow(2));
  const Tensor scaled = centred * torch::rsqrt(variance + variant.eps_k_norm) * weight;
  return variant.k_norm == KNorm::layer_norm ? scaled + bias : scaled;
}

}  // namespace dsv32::reference
