#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

constexpr size_t kFewestRows = 4;

/// The number that brings a row of the oracle nearest to the judged one; NaN for a row of zeros.
double gain_of_row(const std::vector<double>& o, const std::vector<double>& k) {
  double oo = 0, ko = 0;
  for (size_t i = 0; i < o.size(); ++i) {
    oo += o[i] * o[i];
    ko += k[i] * o[i];
  }
  return ko / oo;
}

/// A norm over other values, a softmax with one term more, weights that are normed otherwise.
std::string row_gains(const Comparison& c, const Sample& sample) {
  constexpr double kApart = 1e-4;
  std::vector<double> gains;
  double least = INFINITY, most = -INFINITY;
  for (size_t r = 0; r < sample.o.size(); ++r) {
    const double gain = gain_of_row(sample.o[r], sample.k[r]);
    gains.push_back(std::isfinite(gain) ? gain : 0);
    if (!std::isfinite(gain)) continue;
    least = std::min(least, gain);
    most = std::max(most, gain);
  }
  if (!(most - least > kApart) ||
      !explains(sample, [&](size_t r, size_t i) { return gains[r] * sample.o[r][i]; }))
    return "";
  const std::string range = text_of(least) + " to " + text_of(most);
  return c.tap.info.name == "attn.probs" && !parse_slope(c.tap.full)
             ? "the rows sum up to " + range + ", not to 1"
             : "each row is the right one times a number of its own (" + range + ")";
}

std::vector<double> sorted(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values;
}

/// Another order in each row: values and what they belong to were sorted apart.
std::string row_orders(const Sample& sample) {
  std::vector<std::vector<double>> o;
  for (const auto& row : sample.o) o.push_back(sorted(row));
  Sample ordered{.rows = sample.rows, .o = std::move(o), .k = {}, .error = sample.error};
  for (const auto& row : sample.k) ordered.k.push_back(sorted(row));
  if (!explains(ordered, [&](size_t r, size_t i) { return ordered.o[r][i]; })) return "";
  return "each row holds the right values in another order";
}

}  // namespace

std::string describe_each_row(const Comparison& c, const Sample& sample) {
  if (sample.o.size() < kFewestRows || sample.lanes() < 2) return "";
  const std::string gains = row_gains(c, sample);
  const bool keys = c.tap.info.kind == TapKind::attention || c.tap.info.kind == TapKind::keys ||
                    c.tap.info.kind == TapKind::scores;
  return gains.empty() && !keys ? row_orders(sample) : gains;
}

}  // namespace dsv32::harness
