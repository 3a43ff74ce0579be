#include "harness/judge/cancelled.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/limits.h"

namespace dsv32::harness {
namespace {

double norm(const HostTensor& tensor) {
  double squares = 0;
  if (tensor.dtype() == DType::float64) {
    for (const double value : tensor.data<double>()) squares += value * value;
    return std::sqrt(squares);
  }
  for (int64_t i = 0; i < tensor.numel(); ++i) squares += tensor.at(i) * tensor.at(i);
  return std::sqrt(squares);
}

/// What a float64 run leaves of terms of size 1 that cancel, and more; no gradient of a model is so
/// small beside the others of its layer.
double nothing() { return rounding_floor(DType::float32) * rounding_floor(DType::bfloat16); }

}  // namespace

double gradient_scale(const std::vector<std::string>& gradients, const Trace& oracle,
                      int64_t layer) {
  double scale = 0;
  for (const std::string& name : gradients) {
    const HostTensor* gradient = oracle.find(name);
    if (gradient != nullptr && parse_tap(name)->layer == layer)
      scale = std::max(scale, norm(*gradient));
  }
  return scale;
}

std::optional<Verdict> compare_cancelled(const Comparison& c, double scale) {
  const HostTensor& oracle = *c.yardstick.oracle;
  if (!(norm(oracle) <= nothing() * scale) || scale == 0) return std::nullopt;
  Verdict verdict = open_verdict(c);
  verdict.checked = oracle.numel();
  verdict.measures.push_back(
      by_limit("gradient.cancelled", norm(*c.judged) / (rounding_floor(c.dtype) * scale)));
  settle(verdict);
  if (verdict.trust == Trust::pass) verdict.trust = Trust::vacuous;
  verdict.note = "the oracle's gradient is all zero: nothing was tested";
  return verdict;
}

}  // namespace dsv32::harness
