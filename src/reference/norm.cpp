#include "src/reference/ops.h"

namespace dsv32::reference {

Tensor rms_norm(const Context& ctx, const Tensor& x, const Tensor& weight, double eps) {
  const Tensor mean_square = x.pow(2).mean(-1, /*keepdim=*/true);
  const Tensor normed = x * torch::rsqrt(mean_square + eps);
  return weight * ctx.rounding.op(normed);
}

Tensor index_key_norm(const Context& ctx, const Tensor& x, const Tensor& weight,
                      const Tensor& bias) {
  const IndexerVariant& variant = ctx.dialect.indexer;
  if (variant.k_norm == KNorm::rms_norm) return rms_norm(ctx, x, weight, variant.eps_k_norm);
  const Tensor centred = x - x.mean(-1, /*keepdim=*/true);
  const Tensor variance = centred.pow(2).mean(-1, /*keepdim=*/true);
  const Tensor scaled = centred * torch::rsqrt(variance + variant.eps_k_norm) * weight;
  return variant.k_norm == KNorm::layer_norm ? scaled + bias : scaled;
}

}  // namespace dsv32::reference
