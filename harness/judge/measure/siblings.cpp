#include "harness/judge/measure/siblings.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/measure/metrics.h"
#include "harness/judge/measure/rows.h"

namespace dsv32::harness {
namespace {

/// "grad.model.layers.1.mlp.experts.*.up_proj.weight"; empty: not an expert's.
std::string family_of(const std::string& gradient) {
  const std::string before = ".experts.";
  const size_t at = gradient.find(before);
  if (at == std::string::npos) return "";
  const size_t number = at + before.size(), after = gradient.find('.', number);
  if (after == std::string::npos) return "";
  return gradient.substr(0, number) + "*" + gradient.substr(after);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

Siblings SiblingNoise::of(const TapName& gradient, const std::vector<std::string>& gradients,
                          const std::function<Comparison(const TapName&)>& comparison) {
  const std::string family = family_of(gradient.full);
  if (family.empty()) return {};
  const auto [known, is_new] = known_.emplace(family, Siblings{});
  if (!is_new) return known->second;
  std::vector<double> references, probes;
  for (const std::string& name : gradients) {
    if (family_of(name) != family) continue;
    const Comparison c = comparison(*parse_tap(name));
    if (c.yardstick.oracle == nullptr) continue;
    const RowLayout layout(c.tap, c.yardstick.oracle->shape(), c.batch, nullptr, RowView::judged);
    const TapError error = measure_rows(c, layout, nullptr);
    if (!(error.norm > 0) || !std::isfinite(error.norm)) continue;  // reached by no token
    references.push_back(error.reference / error.norm);
    probes.push_back(error.probe / error.norm);
  }
  return known->second = {.reference = median(references), .probe = median(probes)};
}

}  // namespace dsv32::harness
