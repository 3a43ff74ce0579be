#include "harness/judge/noise.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

namespace dsv32::harness {
namespace {

const Measure* find(const Verdict& verdict, const std::string& metric) {
  const auto it = std::find_if(verdict.measures.begin(), verdict.measures.end(),
                               [&](const Measure& m) { return m.metric == metric; });
  return it == verdict.measures.end() ? nullptr : &*it;
}

/// The clean run's error in units of our noise, never below 1.
double noise_of(const Verdict& clean, const std::string& metric) {
  const Measure* m = find(clean, metric);
  return m == nullptr ? 1 : std::max(1.0, m->measured);
}

/// Metrics whose unit is the noise floor of the tensor.
const std::set<std::string> kByTensor = {"tensor ratio", "cap", "tail", "max tail", "band"};

double factor(const Verdict& clean, const std::string& metric) {
  if (kByTensor.contains(metric)) return noise_of(clean, "tensor ratio");
  const bool by_row = metric == "row ratio" || metric == "row norm" || metric == "chosen row ratio";
  return by_row ? noise_of(clean, "row ratio") : 1;
}

using Key = std::pair<std::string, Mode>;

std::map<Key, const Verdict*> by_check(const std::vector<Verdict>& verdicts) {
  std::map<Key, const Verdict*> out;
  for (const Verdict& verdict : verdicts) out.emplace(Key{verdict.tap, verdict.mode}, &verdict);
  return out;
}

/// Every failing measure with the limit that the clean run gives it; true where one moved.
bool widen(const Verdict& clean, Verdict& verdict) {
  bool moved = false;
  for (Measure& measure : verdict.measures) {
    const double by = factor(clean, measure.metric);
    if (measure.within() || by <= 1) continue;
    measure.limit *= by;
    // A number of elements, not a size: those of the clean run come on top.
    const Measure* known = find(clean, measure.metric);
    if (measure.metric == "tail" && known != nullptr) measure.limit += known->measured;
    measure.basis += "; widened by the noise of a clean run";
    moved = true;
  }
  return moved;
}

}  // namespace

std::string widen_by_noise(const CleanRun& clean, std::vector<Verdict>& verdicts) {
  const auto checks = by_check(clean.verdicts);
  size_t accepted = 0;
  double largest = 1;
  std::string where;
  for (Verdict& verdict : verdicts) {
    const auto found = checks.find({verdict.tap, verdict.mode});
    if (found == checks.end()) continue;
    const double noise = noise_of(*found->second, "tensor ratio");
    if (noise > largest) largest = noise, where = verdict.tap;
    if (verdict.trust != Trust::fail || !widen(*found->second, verdict)) continue;
    verdict.trust = Trust::pass;
    settle(verdict);
    if (verdict.trust != Trust::pass) continue;
    ++accepted;
    verdict.structure.clear();
    verdict.note = "within the noise of the clean run";
  }
  char times[32];
  std::snprintf(times, sizeof times, "%.3g", largest);
  std::string text = "noise of " + clean.label + ": at most " + times + " of ours";
  if (!where.empty()) text += " (" + where + ")";
  return text + "; " + std::to_string(accepted) + " checks pass by it";
}

}  // namespace dsv32::harness
