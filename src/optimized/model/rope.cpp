#include <algorithm>
#include <cmath>
#include <optional>

#include "src/optimized/model/context.h"

namespace dsv32::optimized {
namespace {

/// f_i, [rope/2] float64.
Tensor frequencies(const ModelConfig& config) {
  const int64_t pairs = config.qk_rope_head_dim / 2;
  const auto d = static_cast<double>(config.qk_rope_head_dim);
  const std::optional<YarnNumbers> yarn = config.yarn_numbers();
  Tensor all = at::empty({pairs}, at::kDouble);
  for (int64_t i = 0; i < pairs; ++i) {
    const auto index = static_cast<double>(i);
    double frequency = std::pow(config.rope_theta, -2 * index / d);
    if (yarn) {
      const double ramp = std::clamp((index - yarn->low) / yarn->width, 0.0, 1.0);
      frequency = frequency / config.yarn->factor * ramp + frequency * (1 - ramp);
    }
    all.data_ptr<double>()[i] = frequency;
  }
  return all;
}

}  // namespace

RopeTable rope_table(const Context& ctx, const Tensor& positions) {
  const Tensor angles = positions.to(at::kDouble).unsqueeze(-1) * frequencies(ctx.config);
  return {angles.cos().to(ctx.device, at::kFloat), angles.sin().to(ctx.device, at::kFloat)};
}

double softmax_scale(const ModelConfig& config) {
  const double plain = std::pow(static_cast<double>(config.qk_head_dim()), -0.5);
  if (!config.yarn) return plain;
  const double mscale = config.yarn_numbers()->mscale;
  return plain * mscale * mscale;
}

}  // namespace dsv32::optimized
