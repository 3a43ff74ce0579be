#include "harness/judge/structure/structure.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <functional>
#include <map>

#include "harness/judge/limits.h"
#include "harness/judge/structure/parts.h"

namespace dsv32::harness {
namespace {

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* pattern, ...) {
  char text[200];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

// Sums over all judged elements of oracle values o and judged values k.
struct Sums {
  double oo = 0, ko = 0, kk = 0, d = 0, dd = 0;  // d = k - o
  int64_t elements = 0;
  int64_t not_finite = 0;
  int64_t first_not_finite = -1;
};

Sums sum_products(const Comparison& c, const RowLayout& layout) {
  Sums sums;
  std::vector<double> o, k;
  for (const Row& row : layout.rows()) {
    layout.gather(*c.yardstick.oracle, row, o);
    layout.gather(*c.judged, row, k);
    sums.elements += layout.judged_elements(row);
    for (size_t i = 0; i < o.size(); ++i) {
      if (!std::isfinite(k[i])) {
        if (sums.not_finite++ == 0) sums.first_not_finite = layout.flat_index(row, i);
        continue;
      }
      const double d = k[i] - o[i];
      sums.oo += o[i] * o[i];
      sums.ko += k[i] * o[i];
      sums.kk += k[i] * k[i];
      sums.d += d;
      sums.dd += d * d;
    }
  }
  return sums;
}

std::string name_not_finite(const RowLayout& layout, const Sums& sums) {
  return std::to_string(sums.not_finite) + " NaN or infinite values, the first at " +
         to_string(Shape(layout.unravel(sums.first_not_finite)));
}

/// With the constants of the config that it may be.
std::string name_gain(const Comparison& c, const Sums& sums) {
  const std::string text = describe_gain(sums.oo, sums.ko, sums.kk, sums.elements);
  if (text.empty() || c.config == nullptr) return text;
  const double gain = sums.ko / sums.oo, left = std::max(sums.kk - gain * sums.ko, 0.0);
  const double error = std::sqrt(left / static_cast<double>(sums.elements - 1) / sums.oo);
  return text + name_constant(c.tap, *c.config, gain, error);
}

std::string name_shift(const Sums& sums) {
  if (!(sums.dd > 0) || sums.elements < 2) return "";
  const double count = static_cast<double>(sums.elements);
  const double shift = sums.d / count;
  const double explained = shift * sums.d;  // count * shift^2
  const double error = std::sqrt(std::max(sums.dd - explained, 0.0) / (count - 1) / count);
  const bool certain = std::fabs(shift) > limit_of("structure.certainty") * error;
  if (!certain || explained / sums.dd < limit_of("structure.share")) return "";
  return format("shift %.4g +- %.1g", shift, error);
}

using GroupOf = std::function<int64_t(const Row&)>;

// The group that holds nearly all of the squared error, when there is more than one.
std::string name_group(const RowLayout& layout, const TapError& error, const char* name,
                       const GroupOf& group_of) {
  std::map<int64_t, double> sums;
  for (size_t r = 0; r < error.rows.size(); ++r)
    sums[group_of(layout.rows()[r])] += error.rows[r].judged * error.rows[r].judged;
  if (sums.size() < 2) return "";
  const auto largest = std::max_element(
      sums.begin(), sums.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const double share = largest->second / (error.judged * error.judged);
  if (!(share >= limit_of("structure.share"))) return "";
  return format("%s %lld holds %.4g %% of the squared error", name,
                static_cast<long long>(largest->first), 100 * share);
}

std::string name_one_row(const RowLayout& layout, const TapError& error) {
  if (error.rows.size() < 2) return "";
  size_t worst = 0;
  for (size_t r = 0; r < error.rows.size(); ++r)
    if (error.rows[r].judged > error.rows[worst].judged) worst = r;
  const double share = std::pow(error.rows[worst].judged / error.judged, 2);
  if (!(share >= limit_of("structure.share"))) return "";
  return "one row (" + describe(layout.rows()[worst]) + ")" +
         format(" holds %.4g %% of the squared error", 100 * share);
}

// The largest token t0 with nearly all of the error in rows >= t0, when that is less than half of
// them.
std::string name_tail_rows(const RowLayout& layout, const TapError& error) {
  std::map<int64_t, std::pair<double, int64_t>> by_token;  // squared error, rows
  for (size_t r = 0; r < error.rows.size(); ++r) {
    auto& [sum, count] = by_token[layout.rows()[r].s];
    sum += error.rows[r].judged * error.rows[r].judged;
    ++count;
  }
  double sum = 0;
  size_t rows = 0;
  for (auto token = by_token.rbegin(); token != by_token.rend(); ++token) {
    sum += token->second.first;
    rows += token->second.second;
    if (2 * rows >= error.rows.size()) return "";
    if (sum >= limit_of("structure.share") * error.judged * error.judged)
      return format("rows from s = %lld on hold %.4g %% of the squared error",
                    static_cast<long long>(token->first),
                    100 * sum / (error.judged * error.judged));
  }
  return "";
}

std::string name_expert(const std::string& tap) {
  const std::string marker = ".experts.";
  const size_t at = tap.find(marker);
  if (at == std::string::npos) return "";
  const size_t begin = at + marker.size();
  return "expert " + tap.substr(begin, tap.find('.', begin) - begin);
}

std::string name_row_groups(const RowLayout& layout, const TapError& error) {
  const std::string one = name_one_row(layout, error);
  if (!one.empty()) return one;
  const bool tokens = !layout.rows().empty() && layout.rows()[0].b >= 0;
  if (!tokens) return "";
  const std::string text =
      name_group(layout, error, "batch row", [](const Row& row) { return row.b; });
  const std::string head = name_group(layout, error, "head", [](const Row& row) { return row.h; });
  const std::string tail = name_tail_rows(layout, error);
  return joined({text, head, tail});
}

}  // namespace

std::string describe_gain(double oo, double ko, double kk, int64_t count) {
  const double dd = kk - 2 * ko + oo;  // sum of (k - o)^2
  if (!(oo > 0 && dd > 0) || count < 2) return "";
  const double gain = ko / oo;
  const double left = std::max(kk - gain * ko, 0.0);  // sum of (k - gain o)^2
  const double error = std::sqrt(left / static_cast<double>(count - 1) / oo);
  const bool certain = std::fabs(gain - 1) > limit_of("structure.certainty") * error;
  if (!certain || 1 - left / dd < limit_of("structure.share")) return "";
  return format("gain %.6g +- %.1g", gain, error);
}

std::optional<double> whole_gain(const Comparison& c, const RowLayout& layout) {
  const Sums sums = sum_products(c, layout);
  if (describe_gain(sums.oo, sums.ko, sums.kk, sums.elements).empty()) return std::nullopt;
  return sums.ko / sums.oo;
}

std::string describe_rows(const TapName& tap, const RowLayout& layout, const TapError& error) {
  return joined({name_row_groups(layout, error), name_expert(tap.full)});
}

std::string describe_structure(const Comparison& c, const RowLayout& layout,
                               const TapError& error) {
  const std::string ranks = describe_summands(c, layout);
  if (const std::string mask = describe_mask(c, layout); !mask.empty())
    return joined({ranks, mask, describe_common(c, layout, error)});
  const Sums sums = sum_products(c, layout);
  if (sums.not_finite > 0) return joined({name_not_finite(layout, sums), ranks});
  const Sample sample = take_sample(c, layout, error);
  const std::string where = joined({describe_blocks(c, sample), describe_lanes(c, sample)});
  const std::string each = where.empty() && ranks.empty() ? describe_each_row(c, sample) : "";
  const std::string whole = each.empty() ? joined({name_gain(c, sums), name_shift(sums)}) : each;
  return joined({ranks, whole, where, describe_values(c, layout, sample),
                 describe_rows(c.tap, layout, error), describe_common(c, layout, error)});
}

}  // namespace dsv32::harness
