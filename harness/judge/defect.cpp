#include "harness/judge/defect.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace dsv32::harness {
namespace {

std::string number(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::string percent(double share) {
  const double value = 100 * share;
  return number(value >= 10 ? "%.0f %%" : "%.2g %%", value);
}

/// Both with as many digits as tell them apart.
std::string change(double before, double after) {
  for (int digits = 3; digits < 17; ++digits) {
    char a[40], b[40];
    std::snprintf(a, sizeof a, "%.*g", digits, before);
    std::snprintf(b, sizeof b, "%.*g", digits, after);
    if (std::string(a) != b) return std::string(a) + " -> " + b;
  }
  return number("%.17g", before);
}

std::string rows(const RowShare& share) {
  return std::to_string(share.rows) + " of " + std::to_string(share.of) + " rows";
}

std::string layers_text(const std::vector<int64_t>& layers) {
  if (layers.empty()) return "";
  std::string text = layers.size() == 1 ? " (layer " : " (layers ";
  for (size_t i = 0; i < layers.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(layers[i]);
  return text + " only)";
}

}  // namespace

double Severity::weight() const {
  const double loss =
      loss_before == 0 ? 0 : std::fabs(loss_after - loss_before) / std::fabs(loss_before);
  if (std::isnan(logits) || std::isnan(loss)) return INFINITY;
  return std::max(logits, loss);
}

std::string in_words(const Severity& s) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (s.other_keys.rows > 0) add("other keys in " + rows(s.other_keys));
  if (s.other_experts.rows > 0) add("other experts in " + rows(s.other_experts));
  if (s.logits > 0 || std::isnan(s.logits)) add("logits " + percent(s.logits) + " off");
  if (s.loss_before != s.loss_after) add("loss " + change(s.loss_before, s.loss_after));
  if (s.other_top1.rows > 0) add("another best token in " + rows(s.other_top1));
  return text;
}

void sort_by_severity(std::vector<Defect>& defects) {
  const auto weight = [](const Defect& d) { return d.severity ? d.severity->weight() : 0; };
  std::stable_sort(defects.begin(), defects.end(),
                   [&](const Defect& a, const Defect& b) { return weight(a) > weight(b); });
}

std::string headline_of(const Defect& defect) {
  std::string text = defect.words + layers_text(defect.layers);
  std::string more = defect.evidence;
  if (defect.severity) {
    const std::string consequence = in_words(*defect.severity);
    if (!more.empty()) more += ", ";
    more += consequence.empty() ? "logits and loss do not change" : consequence;
  }
  return more.empty() ? text : text + ": " + more;
}

}  // namespace dsv32::harness
