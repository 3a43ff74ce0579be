#include "harness/judge/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/judge/picture.h"
#include "harness/judge/structure/structure.h"

namespace dsv32::harness {
namespace {

const char* const kExactBasis = "determined by the model: no tolerance";

// What docs/spec.md fixes about keys outside the support of a row: -inf scores, zero probabilities.
enum class Outside { free, minus_infinity, zero };

Outside outside_rule(const TapName& tap) {
  if (parse_slope(tap.full)) return Outside::free;
  if (tap.info.name == "ix.scores") return Outside::minus_infinity;
  if (tap.info.name == "attn.probs" || tap.info.kind == TapKind::keys) return Outside::zero;
  return Outside::free;
}

bool violates(Outside rule, bool inside, double value) {
  if (rule == Outside::zero) return !inside && value != 0;
  if (rule == Outside::minus_infinity)
    return inside ? !std::isfinite(value) : value != -std::numeric_limits<double>::infinity();
  return false;
}

// Counts violations of the rule over all judged rows and remembers the first.
void check_outside(const Comparison& c, const RowLayout& layout, Verdict& verdict) {
  const Outside rule = outside_rule(c.tap);
  if (rule == Outside::free) return;
  int64_t violations = 0;
  for (const Row& row : layout.rows()) {
    const uint8_t* inside = layout.keys(row);
    for (int64_t t = 0; t < row.length; ++t) {
      const double got = c.judged->at(row.first + t);
      if (!violates(rule, inside[t] != 0, got)) continue;
      if (violations++ > 0) continue;
      const double expected = inside[t] ? c.yardstick.oracle->at(row.first + t)
                              : rule == Outside::minus_infinity
                                  ? -std::numeric_limits<double>::infinity()
                                  : 0.0;
      verdict.worst = Worst{layout.unravel(row.first + t), row.number, expected, got};
    }
  }
  verdict.measures.push_back({"exact", static_cast<double>(violations), 0, kExactBasis});
}

// The element with the largest error of one row.
Worst worst_of_row(const Comparison& c, const RowLayout& layout, const Row& row) {
  std::vector<double> o, k;
  layout.gather(*c.yardstick.oracle, row, o);
  layout.gather(*c.judged, row, k);
  size_t at = 0;
  double largest = -1;
  for (size_t i = 0; i < o.size(); ++i) {
    const double d = std::fabs(k[i] - o[i]);
    if (d <= largest || std::isnan(largest)) continue;
    largest = d;
    at = i;
  }
  return {layout.unravel(layout.flat_index(row, at)), row.number, o[at], k[at]};
}

Worst worst_at(const Comparison& c, const RowLayout& layout, int64_t flat) {
  for (const Row& row : layout.rows()) {
    if (flat < row.first || flat >= row.first + row.length) continue;
    return {layout.unravel(flat), row.number, c.yardstick.oracle->at(flat), c.judged->at(flat)};
  }
  return {};
}

// The oracle is zero everywhere: so must the judged side be.
void check_zero(const Comparison& c, const RowLayout& layout, const TapError& error,
                Verdict& verdict) {
  int64_t wrong = 0;
  for (size_t r = 0; r < error.rows.size(); ++r) {
    if (error.rows[r].largest == 0) continue;
    if (wrong++ == 0) verdict.worst = worst_of_row(c, layout, layout.rows()[r]);
  }
  verdict.measures.push_back(
      {"exact", static_cast<double>(wrong), 0, "the oracle is exactly zero"});
}

struct RowRatios {
  double ratio = 0, cap = 0;
  size_t worst_row = 0;
  size_t beyond = 0;  // rows beyond their limit
};

RowRatios row_ratios(const TapError& error, double limit) {
  RowRatios out;
  double worst = -1;
  for (size_t r = 0; r < error.rows.size(); ++r) {
    const RowError& row = error.rows[r];
    const double ratio = error.row_ratio(row);
    out.ratio = keep_larger(out.ratio, ratio);
    if (!(ratio <= limit)) ++out.beyond;
    out.cap = keep_larger(out.cap, row.judged / (error.sensitivity(row) * error.allowance(row)));
    if (ratio <= worst || std::isnan(worst)) continue;
    worst = ratio;
    out.worst_row = r;
  }
  return out;
}

PlainError plain_error(const Comparison& c, const TapError& error) {
  const double noise = error.noise() / error.norm;
  const double ratio = limits_for(c.tap, c.mode, c.dtype).tensor_ratio;
  return {error.relative(), ratio * small_tensor_factor(error.effective) * noise};
}

void add_ratios(const Comparison& c, const TapError& error, const RowRatios& rows,
                Verdict& verdict) {
  const TapLimits& limits = limits_for(c.tap, c.mode, c.dtype);
  if (error.has_reference) {
    verdict.measures.push_back({"row ratio", rows.ratio, limits.row_ratio, limits.basis});
    verdict.measures.push_back(
        {"tensor ratio", error.tensor_ratio(), limits.tensor_ratio, limits.basis});
  }
  const TapLimits& widest = limits_for(c.tap, c.cap_mode(), c.dtype);
  if (error.has_probe) verdict.measures.push_back({"cap", rows.cap, widest.cap, widest.basis});
}

void add_tail(const Comparison& c, const TapError& error, const Tail& tail, Verdict& verdict) {
  const TapLimits& limits = limits_for(c.tap, c.mode, c.dtype);
  const double allowed =
      std::max(limits.tail_count, limits.tail_fraction * static_cast<double>(error.elements));
  verdict.measures.push_back({"tail", static_cast<double>(tail.beyond), allowed, limits.basis});
  verdict.measures.push_back({"max tail", tail.largest, limits.max_tail, limits.basis});
}

void add_values(const Comparison& c, const RowLayout& layout, const TapError& error,
                Verdict& verdict) {
  const RowRatios rows = row_ratios(error, limits_for(c.tap, c.mode, c.dtype).row_ratio);
  const Tail tail = measure_tail(c, layout, error, limits_for(c.tap, c.mode, c.dtype).tail);
  add_ratios(c, error, rows, verdict);
  const bool by_rows = std::any_of(verdict.measures.begin(), verdict.measures.end(),
                                   [](const Measure& measure) { return !measure.within(); });
  add_tail(c, error, tail, verdict);
  if (!c.golden_config.empty()) {
    Measure measure = by_limit("golden.relative", {.config = c.golden_config}, error.relative());
    // Where rounding alone carries float32 farther, as at far positions, it may.
    if (error.has_reference) measure.limit = std::max(measure.limit, plain_error(c, error).allowed);
    verdict.measures.push_back(std::move(measure));
  }
  if (by_rows && error.has_reference)
    verdict.note = std::to_string(rows.beyond) + " of " + std::to_string(error.rows.size()) +
                   " rows are beyond the row ratio";
  if (verdict.worst) return;  // of an exact rule
  verdict.worst = !by_rows && tail.element >= 0
                      ? worst_at(c, layout, tail.element)
                      : worst_of_row(c, layout, layout.rows()[rows.worst_row]);
}

Verdict wrong_shape(const Comparison& c, const Shape& expected) {
  Verdict verdict = open_verdict(c);
  verdict.trust = Trust::fail;
  verdict.measures.push_back({"exact", 1, 0, kExactBasis});
  verdict.note = "shape " + to_string(c.judged->shape()) + ", expected " + to_string(expected);
  return verdict;
}

// The tap's rows as they are judged.
RowLayout layout_of(const Comparison& c) {
  return {c.tap, c.yardstick.oracle->shape(), c.batch, c.support, RowView::judged};
}

// The structure of a tap that keeps few of its rows cannot be told.
bool keeps_few_queries(const Comparison& c) {
  if (c.tap.info.kind == TapKind::attention) return c.judged->shape()[2] < c.batch->S;
  return c.tap.info.name == "logits" && c.judged->shape()[1] < c.batch->S;
}

Verdict compare_layout(const Comparison& c) {
  const RowLayout layout = layout_of(c);
  if (layout.rows().empty()) return unmeasured(c, Trust::vacuous, "no row is judged");
  Verdict verdict = open_verdict(c);
  const TapError error = measure_rows(c, layout, c.judged);
  if (!std::isfinite(error.norm)) return unmeasured(c, Trust::vacuous, kNotFinite);
  verdict.checked = error.elements;
  check_outside(c, layout, verdict);
  if (error.norm == 0) {
    check_zero(c, layout, error, verdict);
  } else {
    add_values(c, layout, error, verdict);
    verdict.plain = plain_error(c, error);
  }
  settle(verdict);
  if (verdict.trust != Trust::fail || keeps_few_queries(c)) return verdict;
  verdict.structure = describe_structure(c, layout, error);
  verdict.gain = whole_gain(c, layout);
  verdict.picture = picture_of_error(c, layout, error);
  return verdict;
}

}  // namespace

Verdict open_verdict(const Comparison& c) {
  Verdict verdict;
  verdict.subject = c.subject;
  verdict.tap = c.tap.full;
  verdict.layer = c.tap.layer;
  verdict.mode = c.mode;
  return verdict;
}

Verdict unmeasured(const Comparison& c, Trust trust, std::string note) {
  Verdict verdict = open_verdict(c);
  verdict.trust = trust;
  verdict.note = std::move(note);
  return verdict;
}

Verdict compare_values(const Comparison& c) {
  const HostTensor* oracle = c.yardstick.oracle;
  if (oracle == nullptr) return unmeasured(c, Trust::missing, "the oracle has no such tap");
  if (c.judged->shape() != oracle->shape()) return wrong_shape(c, oracle->shape());
  return compare_layout(c);
}

bool breaks_exact_rule(const Verdict& verdict) {
  return std::any_of(verdict.measures.begin(), verdict.measures.end(), [](const Measure& measure) {
    return measure.metric == "exact" && !measure.within();
  });
}

double relative_error(const Comparison& c) {
  const RowLayout layout(c.tap, c.yardstick.oracle->shape(), c.batch, c.support, RowView::judged);
  return measure_rows(c, layout, c.judged).relative();
}

Verdict compare_score_gradient(const Comparison& c, const HostTensor& student,
                               const HostTensor& target) {
  Verdict verdict = open_verdict(c);
  const RowLayout layout(c.tap, c.judged->shape(), c.batch, c.support, RowView::judged);
  if (layout.rows().empty()) return unmeasured(c, Trust::vacuous, "no row is judged");
  std::vector<double> gradient, q, p;
  double worst = 0;
  for (const Row& row : layout.rows()) {
    layout.gather(*c.judged, row, gradient);
    layout.gather(student, row, q);
    layout.gather(target, row, p);
    verdict.checked += layout.judged_elements(row);
    for (size_t i = 0; i < q.size(); ++i) {
      const double expected = q[i] - p[i];
      // Every one of the three is rounded, the largest of them most.
      const double size = std::max({std::fabs(q[i]), std::fabs(p[i]), epsilon(c.dtype)});
      const double units = std::fabs(gradient[i] - expected) / (epsilon(c.dtype) * size);
      if (!std::isnan(units) && units <= worst) continue;
      if (std::isnan(worst)) continue;
      worst = units;
      verdict.worst = Worst{layout.unravel(layout.flat_index(row, static_cast<int64_t>(i))),
                            row.number, expected, gradient[i]};
    }
  }
  verdict.measures.push_back(by_limit("kl.score_gradient", worst));
  settle(verdict);
  return verdict;
}

double element_noise(const Comparison& c, int64_t element) {
  const RowLayout layout = layout_of(c);
  const TapError error = measure_rows(c, layout, c.judged);
  for (size_t r = 0; r < error.rows.size(); ++r) {
    const Row& row = layout.rows()[r];
    const int64_t i = element - row.first;
    if (i < 0 || i >= row.length) continue;
    const uint8_t* counts = layout.keys(row);
    if (counts != nullptr && counts[i] == 0) return 0;
    return element_noise(error, error.rows[r], c.yardstick.oracle->at(element), c.dtype, i);
  }
  return 0;
}

}  // namespace dsv32::harness
