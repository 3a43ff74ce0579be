#include <algorithm>
#include <cmath>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/judge/structure/structure.h"
#include "src/model/sketch.h"

/// A sketched tap against the oracle. The mean of the squared differences of the projections
/// estimates ||K_i - O_i||^2 without bias; how far such an estimate strays is in `sketch_factor`.
namespace dsv32::harness {
namespace {

// What is known of one judged side's row, and of the same row of the oracle.
struct RowSketch {
  double judged_norm = 0;
  double oo = 0, ko = 0, kk = 0, dd = 0;  // sums over the projections o, k and d = k - o
};

class SketchComparison {
 public:
  SketchComparison(const Comparison& c, const golden::SketchedTap& sketch, const HostTensor& oracle)
      : c_(c),
        sketch_(sketch),
        oracle_(oracle),
        limits_(limits_for(c.tap, c.mode, c.dtype)),
        layout_(c.tap, oracle.shape(), c.batch, c.support, RowView::sketch) {}

  Verdict run() {
    if (layout_.rows().empty()) return unmeasured(c_, Trust::vacuous, "no row is judged");
    error_ = measure_rows(c_, layout_, nullptr);
    if (!std::isfinite(error_.norm)) return unmeasured(c_, Trust::vacuous, kNotFinite);
    verdict_ = open_verdict(c_);
    verdict_.checked = error_.elements;
    read_rows();
    if (error_.norm == 0) {
      demand_zero();
    } else {
      judge_rows();
      judge_tensor();
      judge_chosen();
    }
    settle(verdict_);
    if (verdict_.trust == Trust::fail) verdict_.structure = structure();
    return std::move(verdict_);
  }

 private:
  // Estimates of every row, from the projections.
  void read_rows() {
    const std::vector<uint8_t> signs = sketch_signs(c_.tap.full, row_size());
    std::vector<double> o;
    std::array<double, kProjections> projected;
    for (size_t r = 0; r < layout_.rows().size(); ++r) {
      const Row& row = layout_.rows()[r];
      layout_.gather(oracle_, row, o);
      project(o, signs, projected);
      RowSketch& out = rows_.emplace_back();
      out.judged_norm = sketch_.row_norms.at(row.number);
      for (int p = 0; p < kProjections; ++p) {
        const double k = sketch_.projections.at(row.number * kProjections + p);
        out.oo += projected[p] * projected[p];
        out.ko += k * projected[p];
        out.kk += k * k;
        out.dd += (k - projected[p]) * (k - projected[p]);
      }
      error_.rows[r].judged = std::sqrt(out.dd / kProjections);
    }
    sum_up(error_);
  }

  int64_t row_size() const { return layout_.rows()[0].pieces * layout_.rows()[0].length; }

  void demand_zero() {
    const auto nonzero = [](const std::vector<float>& values) {
      return std::count_if(values.begin(), values.end(), [](float x) { return x != 0; });
    };
    int64_t wrong = 0;  // padded rows may hold anything
    for (size_t r = 0; r < rows_.size(); ++r)
      wrong += rows_[r].judged_norm != 0 || rows_[r].kk != 0 ? 1 : 0;
    if (c_.tap.info.kind == TapKind::gradient) wrong += nonzero(sketch_.rows);
    add("exact", static_cast<double>(wrong), 0, "the oracle is exactly zero");
  }

  void judge_rows() {
    double ratio = 0, norm = 0, cap = 0, worst = -1;
    for (size_t r = 0; r < rows_.size(); ++r) {
      const RowError& row = error_.rows[r];
      const double allowance = error_.allowance(row);
      const double unit = error_.denominator(row) * allowance;
      const double norm_gap = std::fabs(rows_[r].judged_norm - row.norm) / unit;
      ratio = keep_larger(ratio, row.judged / unit);
      norm = keep_larger(norm, norm_gap);
      cap = keep_larger(cap, row.judged / (error_.sensitivity(row) * allowance));
      const double either = keep_larger(row.judged / unit, norm_gap);
      if (either <= worst || std::isnan(worst)) continue;
      worst = either;
      verdict_.worst = worst_row(r);
    }
    const double stray = sketch_factor(kProjections);
    if (error_.has_reference) {
      add("row ratio", ratio, limits_.row_ratio * stray, limits_.basis);
      add("row norm", norm, limits_.row_ratio, limits_.basis);
    }
    if (error_.has_probe) add("cap", cap, limits_.cap * stray, limits_.basis);
  }

  Worst worst_row(size_t r) const {
    const Row& row = layout_.rows()[r];
    const auto index = row.b < 0 ? std::vector<int64_t>{} : std::vector<int64_t>{row.b, row.s};
    return {index, row.number, error_.rows[r].norm, rows_[r].judged_norm};
  }

  void judge_tensor() {
    if (error_.has_reference) {
      add("tensor ratio", error_.tensor_ratio() / sketch_factor(degrees()), limits_.tensor_ratio,
          limits_.basis);
    }
    if (c_.golden_config.empty()) return;
    Measure measure = by_limit("golden.relative", {.config = c_.golden_config}, error_.relative());
    // Where rounding alone carries float32 farther, as at far positions, it may.
    if (error_.has_reference) measure.limit = std::max(measure.limit, relative_allowed());
    verdict_.measures.push_back(std::move(measure));
  }

  // What the limit of the tensor ratio allows, as a part of the oracle's norm.
  double relative_allowed() const {
    return limits_.tensor_ratio * small_tensor_factor(error_.effective) * sketch_factor(degrees()) *
           error_.noise() / error_.norm;
  }

  // Squared projections that the whole-tensor estimate averages: fewer when a few rows hold most of
  // the noise.
  double degrees() const {
    double squares = 0, fourths = 0;
    for (const RowError& row : error_.rows) {
      const double square = std::pow(error_.denominator(row), 2);
      squares += square;
      fourths += square * square;
    }
    return kProjections * squares * squares / fourths;
  }

  // Complete rows: the usual ratio and tail, without an estimate.
  void judge_chosen() {
    const bool weight = c_.tap.info.kind == TapKind::gradient;
    const RowLayout whole(c_.tap, oracle_.shape(), c_.batch, c_.support, RowView::judged);
    const RowLayout& layout = weight ? whole : layout_;
    const TapError error = weight ? measure_rows(c_, whole, nullptr) : error_;
    for (size_t j = 0; j < sketch_.row_index.size(); ++j)
      for (size_t r = 0; r < layout.rows().size(); ++r)
        if (layout.rows()[r].number == sketch_.row_index[j])
          judge_chosen_row(layout.rows()[r], error, error.rows[r], j);
    if (error.has_reference)
      add("chosen row ratio", chosen_ratio_, limits_.row_ratio, limits_.basis);
    const double elements = static_cast<double>(sketch_.rows.size());
    add("tail", static_cast<double>(beyond_),
        std::max(limits_.tail_count, limits_.tail_fraction * elements), limits_.basis);
    add("max tail", largest_, limits_.max_tail, limits_.basis);
  }

  void judge_chosen_row(const Row& row, const TapError& error, RowError measured, size_t j) {
    std::vector<double> o;
    const bool weight = c_.tap.info.kind == TapKind::gradient;
    const RowLayout layout(c_.tap, oracle_.shape(), c_.batch, c_.support,
                           weight ? RowView::judged : RowView::sketch);
    layout.gather(oracle_, row, o);
    double square = 0;
    for (size_t i = 0; i < o.size(); ++i) {
      const double d = sketch_.rows.at(j * o.size() + i) - o[i];
      square += d * d;
      if (d == 0) continue;
      const double units = std::fabs(d) / element_noise(error, measured, o[i], c_.dtype);
      if (!(units <= limits_.tail)) ++beyond_;
      largest_ = keep_larger(largest_, units);
    }
    const double unit = error.denominator(measured) * error.allowance(measured);
    chosen_ratio_ = keep_larger(chosen_ratio_, std::sqrt(square) / unit);
  }

  std::string structure() const {
    double oo = 0, ko = 0, kk = 0;
    for (const RowSketch& row : rows_) {
      oo += row.oo;
      ko += row.ko;
      kk += row.kk;
    }
    const std::string gain =
        describe_gain(oo, ko, kk, static_cast<int64_t>(rows_.size()) * kProjections);
    const std::string groups = describe_rows(c_.tap, layout_, error_);
    return gain.empty() || groups.empty() ? gain + groups : gain + "; " + groups;
  }

  void add(const char* metric, double measured, double limit, const std::string& basis) {
    verdict_.measures.push_back({metric, measured, limit, basis});
  }

  const Comparison& c_;
  const golden::SketchedTap& sketch_;
  const HostTensor& oracle_;
  const TapLimits& limits_;
  RowLayout layout_;
  TapError error_;
  std::vector<RowSketch> rows_;
  Verdict verdict_;
  int64_t beyond_ = 0;
  double largest_ = 0, chosen_ratio_ = 0;
};

// Sizes of the stored parts follow from the shape.
bool well_formed(const Comparison& c, const golden::SketchedTap& sketch) {
  const SketchRows rows = sketch_rows(c.tap, sketch.shape);
  const auto count = static_cast<size_t>(rows.count);
  return sketch.row_norms.size() == count && sketch.projections.size() == count * kProjections;
}

}  // namespace

Verdict compare_sketch(const Comparison& c, const golden::SketchedTap& judged) {
  const HostTensor* oracle = c.yardstick.oracle;
  if (oracle == nullptr) return unmeasured(c, Trust::missing, "the oracle has no such tap");
  if (judged.shape != oracle->shape() || !well_formed(c, judged)) {
    Verdict verdict = unmeasured(
        c, Trust::fail,
        "sketch of shape " + to_string(judged.shape) + ", expected " + to_string(oracle->shape()));
    verdict.measures.push_back({"exact", 1, 0, "a sketch is of the tap's shape"});
    return verdict;
  }
  return SketchComparison(c, judged, *oracle).run();
}

}  // namespace dsv32::harness
