#include <cmath>
#include <numbers>

#include "src/optimized/model/context.h"

namespace dsv32::optimized {
namespace {

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 || mscale == 0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// SPEC 1.3, c(r).
double turning_pair(const ModelConfig& config, double turns) {
  const auto length = static_cast<double>(config.yarn->original_max_position_embeddings);
  return static_cast<double>(config.qk_rope_head_dim) *
         std::log(length / (2 * std::numbers::pi * turns)) / (2 * std::log(config.rope_theta));
}

/// f_i, [rope/2] float64.
Tensor frequencies(const ModelConfig& config) {
  const int64_t pairs = config.qk_rope_head_dim / 2;
  const auto d = static_cast<double>(config.qk_rope_head_dim);
  double low = 0, high = 1;
  if (config.yarn) {
    low = std::max(std::floor(turning_pair(config, config.yarn->beta_fast)), 0.0);
    high = std::min(std::ceil(turning_pair(config, config.yarn->beta_slow)), d - 1);
    if (high == low) high += 0.001;
  }
  Tensor all = at::empty({pairs}, at::kDouble);
  for (int64_t i = 0; i < pairs; ++i) {
    const auto index = static_cast<double>(i);
    double frequency = std::pow(config.rope_theta, -2 * index / d);
    if (config.yarn) {
      const double ramp = std::clamp((index - low) / (high - low), 0.0, 1.0);
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
  const double mscale = yarn_mscale(config.yarn->factor, config.yarn->mscale_all_dim);
  return plain * mscale * mscale;
}

}  // namespace dsv32::optimized
