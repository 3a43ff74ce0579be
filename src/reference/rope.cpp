#include <cmath>

#include "src/model/errors.h"
#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// The factor of the frequencies and of the amplitude; the softmax scale always takes the explicit
/// one.
double interpolation_factor(const Context& ctx) {
  const YarnConfig& yarn = *ctx.config.yarn;
  if (!ctx.dialect.rope.yarn_factor_is_ratio) return yarn.factor;
  return static_cast<double>(ctx.config.max_position_embeddings) /
         static_cast<double>(yarn.original_max_position_embeddings);
}

/// theta^-exponent. Libraries make a power by pow, or by exp of a product whose rounding counts
/// |log| times: a run whose sums go in another order takes that other way as well.
Tensor powers(const Context& ctx, double theta, const Tensor& exponent) {
  if (ctx.sums == Summation::blocked) return 1.0 / torch::pow(theta, exponent);
  return torch::exp(exponent * -std::log(theta));
}

/// f_i, [d/2], in the type of `real`.
Tensor frequencies(const Context& ctx, const torch::TensorOptions& real) {
  const ModelConfig& config = ctx.config;
  const int64_t d = config.qk_rope_head_dim;
  const Tensor exponent = torch::arange(0, d, 2, real) / static_cast<double>(d);
  constexpr double kDefaultTheta = 10000;
  const double theta = ctx.dialect.rope.default_theta ? kDefaultTheta : config.rope_theta;
  const Tensor plain = powers(ctx, theta, exponent);
  if (!config.yarn || ctx.dialect.rope.yarn_ignored) return plain;

  const YarnNumbers yarn = *config.yarn_numbers();
  const Tensor pair = torch::arange(d / 2, real);
  const Tensor ramp = ((pair - yarn.low) / yarn.width).clamp(0, 1);
  return plain / interpolation_factor(ctx) * ramp + plain * (1 - ramp);
}

double amplitude(const Context& ctx) {
  const RopeVariant& variant = ctx.dialect.rope;
  if (!ctx.config.yarn || !(variant.yarn_amplitude || variant.amplitude_undivided)) return 1.0;
  const YarnConfig& yarn = *ctx.config.yarn;
  const double factor = interpolation_factor(ctx);
  if (variant.amplitude_undivided) return yarn_mscale(factor, yarn.mscale);
  return yarn_mscale(factor, yarn.mscale) / yarn_mscale(factor, yarn.mscale_all_dim);
}

/// Gives a [B,S,d/2] table the rank of x [B,S,...,d].
Tensor broadcast_to_heads(const Tensor& table, const Tensor& x) {
  return x.dim() == 4 ? table.unsqueeze(2) : table;
}

Tensor through_bfloat16(const Tensor& x) { return x.to(torch::kBFloat16).to(x.scalar_type()); }

/// cos and sin of positions [..], of which something is rounded to bfloat16. A number near a tie
/// goes where float32 code takes it, whatever the type of the run.
RopeTable coarse_table(const Context& ctx, const Tensor& positions) {
  const CoarseRope coarse = ctx.dialect.rope.coarse;
  const auto rounded = [coarse](const Tensor& x, CoarseRope where) {
    return coarse == where ? through_bfloat16(x) : x;
  };
  const auto real = ctx.real().dtype(torch::kFloat32);
  const Tensor factors = rounded(frequencies(ctx, real), CoarseRope::frequencies);
  const Tensor angles = rounded(positions.to(torch::kFloat32) * factors, CoarseRope::angles);
  const auto table = [&](const Tensor& x) {
    return ctx.rounding.cast(
        rounded(x * amplitude(ctx), CoarseRope::table).to(ctx.rounding.compute_type()));
  };
  return {table(angles.cos()), table(angles.sin())};
}

}  // namespace

RopeTable rope_table(const Context& ctx, const Tensor& positions) {
  const RopeVariant& variant = ctx.dialect.rope;
  Tensor used = positions + variant.position_offset;
  if (variant.positions_of_row0) used = used.slice(0, 0, 1).expand_as(positions);
  const Tensor wide = used.to(ctx.rounding.compute_type());
  const Tensor by_pair = wide.dim() == 2 ? wide.unsqueeze(-1) : wide;
  if (variant.coarse != CoarseRope::none) return coarse_table(ctx, by_pair);
  const Tensor angles = by_pair * frequencies(ctx, ctx.real());
  return {ctx.rounding.cast(angles.cos() * amplitude(ctx)),
          ctx.rounding.cast(angles.sin() * amplitude(ctx))};
}

Tensor rotate(const Context& ctx, const Tensor& x, const RopeTable& table, RopePairing pairing) {
  const Rounding& r = ctx.rounding;
  const int64_t half = x.size(-1) / 2;
  const bool interleaved = pairing == RopePairing::interleaved;
  const Tensor a = interleaved ? x.slice(-1, 0, torch::nullopt, 2) : x.narrow(-1, 0, half);
  const Tensor b = interleaved ? x.slice(-1, 1, torch::nullopt, 2) : x.narrow(-1, half, half);
  const Tensor cos = broadcast_to_heads(table.cos, x);
  const Tensor sin = broadcast_to_heads(table.sin, x);
  const Tensor first = r.cast(a * cos) - r.cast(b * sin);
  const Tensor second = r.cast(b * cos) + r.cast(a * sin);
  return interleaved ? torch::stack({first, second}, -1).flatten(-2)
                     : torch::cat({first, second}, -1);
}

RopeTable in_sense(const RopeTable& table, bool reversed) {
  return reversed ? RopeTable{table.cos, -table.sin} : table;
}

double softmax_scale(const ModelConfig& config, const AttentionVariant& variant) {
  if (variant.scale == SoftmaxScale::none) return 1;
  const int64_t width = variant.scale == SoftmaxScale::nope ? config.qk_nope_head_dim
                        : variant.scale == SoftmaxScale::v  ? config.v_head_dim
                                                            : config.qk_head_dim();
  const double plain = std::pow(static_cast<double>(width), -0.5);
  if (!config.yarn) return plain;
  const double source =
      variant.mscale_from_mscale ? config.yarn->mscale : config.yarn->mscale_all_dim;
  return plain * std::pow(yarn_mscale(config.yarn->factor, source), variant.mscale_power);
}

Tensor hadamard(const Tensor& x) {
  const int64_t n = x.size(-1);
  if (n <= 0 || (n & (n - 1)) != 0) {
    throw Error(ExitCode::artefact, {.where = "hadamard",
                                     .what = "last dimension",
                                     .expected = "a power of two",
                                     .got = std::to_string(n)});
  }
  Tensor y = x;
  for (int64_t width = 1; width < n; width *= 2) {
    const Tensor pairs = y.unflatten(-1, {n / (2 * width), 2, width});
    const Tensor a = pairs.select(-2, 0), b = pairs.select(-2, 1);
    y = torch::stack({a + b, a - b}, -2).flatten(-3);
  }
  return y * std::pow(static_cast<double>(n), -0.5);
}

}  // namespace dsv32::reference
