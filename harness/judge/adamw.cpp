#include "harness/judge/adamw.h"

#include <cmath>

#include "src/model/tensor.h"

namespace dsv32::harness {
namespace {

double rounded(double value) { return static_cast<float>(value); }

double moment(std::span<const double> moments, size_t i) {
  return moments.empty() ? 0 : rounded(moments[i]);
}

}  // namespace

UpdateError check_update(const AdamWStep& step, const AdamWTensors& tensors) {
  const double count = static_cast<double>(step.count + 1);
  const double correction1 = 1 - std::pow(step.beta1, count);
  const double correction2 = 1 - std::pow(step.beta2, count);
  UpdateError worst;
  for (size_t i = 0; i < tensors.parameter.size(); ++i) {
    const double before = rounded(tensors.parameter[i]);
    const double g = step.clip_factor * tensors.gradient[i];
    const double old_part = step.beta1 * moment(tensors.first, i);
    const double new_part = (1 - step.beta1) * g;
    const double second = step.beta2 * moment(tensors.second, i) + (1 - step.beta2) * g * g;
    const double unit = step.lr / correction1 / (std::sqrt(second / correction2) + step.eps);
    const double expected =
        before * (1 - step.lr * step.weight_decay) - unit * (old_part + new_part);
    const double size = std::fabs(before) + unit * (std::fabs(old_part) + std::fabs(new_part));
    const double error = std::fabs(tensors.updated[i] - expected);
    const double roundings = error == 0 ? 0 : error / (epsilon(DType::float32) * size);
    if (roundings <= worst.roundings || std::isnan(worst.roundings)) continue;
    worst = {roundings, static_cast<int64_t>(i), expected, tensors.updated[i]};
  }
  return worst;
}

}  // namespace dsv32::harness
