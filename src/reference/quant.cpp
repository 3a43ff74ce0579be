#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

constexpr double kLeastMagnitude = 1e-4;  // of a run

/// The smallest power of two that is not below s, or the largest that is not above it.
Tensor power_of_two(const Tensor& s, bool above) {
  const auto [mantissa, exponent] = torch::frexp(s);  // mantissa in [0.5, 1)
  const Tensor exact = mantissa == 0.5;
  const Tensor power = above ? exponent - exact.to(exponent.scalar_type()) : exponent - 1;
  return torch::ldexp(torch::ones_like(s), power);
}

Tensor scale_of(const Context& ctx, const Tensor& amax) {
  const Tensor scale = amax.clamp_min(kLeastMagnitude) * (1.0 / kLargestE4m3);
  if (!ctx.fp8.ue8m0() || ctx.dialect.fp8.plain_scale) return scale;
  return power_of_two(scale, !ctx.dialect.fp8.scale_below);
}

/// [..,D] as runs [..,n,run], with zeros behind the last one.
Tensor in_runs(const Tensor& x, int64_t run) {
  const int64_t n = (x.size(-1) + run - 1) / run;
  return torch::constant_pad_nd(x, {0, n * run - x.size(-1)}).unflatten(-1, {n, run});
}

}  // namespace

Quantized quantize(const Context& ctx, const Tensor& x, int64_t run) {
  torch::NoGradGuard no_grad;
  const Tensor runs = in_runs(x.to(torch::kBFloat16).to(torch::kFloat32), run);
  const Tensor scales = scale_of(ctx, runs.abs().amax(-1));
  const Tensor scaled = (runs / scales.unsqueeze(-1)).clamp(-kLargestE4m3, kLargestE4m3);
  const Tensor codes = scaled.to(torch::kFloat8_e4m3fn).to(x.scalar_type());
  return {codes.flatten(-2).narrow(-1, 0, x.size(-1)), scales.to(x.scalar_type()), run};
}

Tensor restored(const Quantized& q) {
  const Tensor scales = q.scales.repeat_interleave(q.run, -1).narrow(-1, 0, q.codes.size(-1));
  return q.codes * scales;
}

Tensor through_fp8(const Context& ctx, const Tensor& x) {
  const Tensor value = restored(quantize(ctx, x, run_of_activations(ctx)));
  return torch::GradMode::is_enabled() ? x + (value - x).detach() : value;
}

Tensor fp8_product(const Context& ctx, const Quantized& x, const Weight& weight) {
  const int64_t inner = weight.codes.size(1), outs = weight.codes.size(0);
  const Tensor out_scales =
      weight.scales.repeat_interleave(weight.block_rows, 0).narrow(0, 0, outs);  // [out,blocks]
  Tensor sum;
  for (int64_t first = 0, run = 0; first < inner; first += x.run, ++run) {
    const int64_t width = std::min(x.run, inner - first);
    const Tensor part = product_with_weight(ctx.products(), x.codes.narrow(-1, first, width),
                                            weight.codes.narrow(-1, first, width));
    const Tensor scale =
        x.scales.narrow(-1, run, 1) * out_scales.select(1, first / weight.block_columns);
    sum = sum.defined() ? sum + part * scale : part * scale;
  }
  return sum;
}

int64_t run_of_activations(const Context& ctx) {
  const int64_t run = ctx.fp8.block_columns;
  return ctx.dialect.fp8.half_runs ? std::max<int64_t>(run / 2, 1) : run;
}

}  // namespace dsv32::reference
