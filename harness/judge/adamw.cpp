#include "harness/judge/adamw.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "harness/judge/limits.h"
#include "src/model/at_once.h"
#include "src/model/check_name.h"
#include "src/model/tensor.h"

namespace dsv32::harness {
namespace {

double rounded(double value) { return static_cast<float>(value); }

double moment(std::span<const double> moments, size_t i) {
  return moments.empty() ? 0 : rounded(moments[i]);
}

/// The first of two that are equally wrong stays, and so does NaN.
void keep_worse(const UpdateError& error, UpdateError& worst) {
  if (error.roundings <= worst.roundings || std::isnan(worst.roundings)) return;
  worst = error;
}

/// check_update of the elements [begin, end).
UpdateError check_part(const AdamWStep& step, const AdamWTensors& tensors, size_t begin,
                       size_t end) {
  const double count = static_cast<double>(step.count + 1);
  const double correction1 = 1 - std::pow(step.beta1, count);
  const double correction2 = 1 - std::pow(step.beta2, count);
  UpdateError worst;
  for (size_t i = begin; i < end; ++i) {
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
    keep_worse({roundings, static_cast<int64_t>(i), expected, tensors.updated[i]}, worst);
  }
  return worst;
}

}  // namespace

UpdateError check_update(const AdamWStep& step, const AdamWTensors& tensors) {
  constexpr size_t kPart = size_t{1} << 16;  // of fewer, a thread costs more than it saves
  const size_t size = tensors.parameter.size();
  std::vector<UpdateError> parts((size + kPart - 1) / kPart);
  at_once(parts.size(), [&](size_t i) {
    parts[i] = check_part(step, tensors, i * kPart, std::min(size, (i + 1) * kPart));
  });
  UpdateError worst;
  for (const UpdateError& part : parts) keep_worse(part, worst);
  return worst;
}

Verdict update_verdict(const std::string& name, const UpdateError& error, int64_t checked) {
  Verdict verdict;
  verdict.tap = name;
  verdict.layer = check_layer(name);
  verdict.mode = Mode::forced;
  verdict.checked = checked;
  verdict.measures.push_back(by_limit("step.update", error.roundings));
  if (error.element >= 0)
    verdict.worst = Worst{.index = {error.element}, .expected = error.expected, .got = error.got};
  settle(verdict);
  return verdict;
}

Verdict judge_first_update(const std::string& name, const AdamWStep& step,
                           const FirstUpdate& update) {
  constexpr size_t kBlock = size_t{1} << 20;  // widened at a time
  UpdateError worst;
  for (size_t first = 0; first < update.parameter.size(); first += kBlock) {
    const size_t count = std::min(kBlock, update.parameter.size() - first);
    const auto begin = update.parameter.begin() + static_cast<std::ptrdiff_t>(first);
    const std::vector<double> parameter(begin, begin + static_cast<std::ptrdiff_t>(count));
    UpdateError error = check_update(step, {.parameter = parameter,
                                            .first = {},
                                            .second = {},
                                            .gradient = update.gradient.subspan(first, count),
                                            .updated = update.updated.subspan(first, count)});
    error.element += static_cast<int64_t>(first);
    keep_worse(error, worst);
  }
  return update_verdict(name, worst, static_cast<int64_t>(update.parameter.size()));
}

}  // namespace dsv32::harness
