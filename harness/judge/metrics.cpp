#include "harness/judge/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/judge/limits.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

/// Sums the squares of an error lane by lane.
class LaneErrors {
 public:
  void add(const std::vector<double>& a, const std::vector<double>& b) {
    squares_.resize(std::max(squares_.size(), a.size()));
    for (size_t i = 0; i < a.size(); ++i) squares_[i] += (a[i] - b[i]) * (a[i] - b[i]);
    ++rows_;
  }
  /// Keeps the larger root mean square of each lane in `lanes`.
  void keep_larger_in(std::vector<double>& lanes) const {
    lanes.resize(std::max(lanes.size(), squares_.size()));
    for (size_t i = 0; i < squares_.size(); ++i)
      lanes[i] = std::max(lanes[i], std::sqrt(squares_[i] / static_cast<double>(rows_)));
  }

 private:
  std::vector<double> squares_;
  int64_t rows_ = 0;
};

struct Difference {
  double norm = 0;
  double largest = 0;
};

Difference difference(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0, largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(a[i] - b[i]);
    sum += d * d;
    if (!(d <= largest)) largest = keep_larger(largest, d);
  }
  return {std::sqrt(sum), largest};
}

double norm_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

void expect_shape(const TapName& tap, const HostTensor& tensor, const Shape& shape) {
  if (tensor.shape() == shape) return;
  throw Error(ExitCode::internal, {.where = "compare",
                                   .what = tap.full + " of a yardstick",
                                   .expected = to_string(shape),
                                   .got = to_string(tensor.shape())});
}

// No element of this row can exceed the threshold: saves a second pass over nearly all rows.
bool below_threshold(const TapError& error, const RowError& row, double threshold) {
  const double rms = row.norm / std::sqrt(static_cast<double>(std::max<int64_t>(row.elements, 1)));
  return row.largest <= threshold * error.noise_relative() * rms;
}

// Noise of a correct float32 run in units of its probe, where no reference shows it.
double probe_noise() {
  static const double noise = limit_of("probe.noise");
  return noise;
}

}  // namespace

double keep_larger(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<double>::quiet_NaN();
  return std::max(a, b);
}

double relative(double value, double expected) {
  return value == expected ? 0 : std::fabs(value - expected) / std::fabs(expected);
}

double relative(std::span<const double> a, std::span<const double> b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) difference += (a[i] - b[i]) * (a[i] - b[i]);
    if (a[i] != b[i] || std::isfinite(b[i])) size += b[i] * b[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

double relative(const HostTensor& a, const HostTensor& b) {
  return relative(a.to_doubles(), b.to_doubles());
}

double TapError::noise_relative() const {
  const double noise = has_reference ? reference : probe_noise() * probe;
  return norm > 0 ? std::max(noise / norm, floor) : floor;
}

double TapError::noise_of(const RowError& row) const {
  return has_reference ? row.reference : probe_noise() * row.probe;
}

double TapError::denominator(const RowError& row) const {
  return std::max(row.reference, noise_relative() * scale(row));
}

double TapError::sensitivity(const RowError& row) const { return row.probe + floor * scale(row); }

void sum_up(TapError& error) {
  double judged = 0, reference = 0, probe = 0, norm = 0;
  error.elements = 0;
  for (const RowError& row : error.rows) {
    judged += row.judged * row.judged;
    reference += row.reference * row.reference;
    probe += row.probe * row.probe;
    norm += row.norm * row.norm;
    error.elements += row.elements;
  }
  error.judged = std::sqrt(judged);
  error.reference = std::sqrt(reference);
  error.probe = std::sqrt(probe);
  error.norm = std::sqrt(norm);
  error.rms_norm =
      error.rows.empty() ? 0 : std::sqrt(norm / static_cast<double>(error.rows.size()));
}

TapError measure_rows(const Comparison& c, const RowLayout& layout, const HostTensor* judged) {
  const auto [oracle, reference, probe, twin] = c.yardstick;
  for (const HostTensor* other : {reference, probe, twin})
    if (other != nullptr) expect_shape(c.tap, *other, oracle->shape());
  TapError error;
  error.has_reference = reference != nullptr;
  error.has_probe = probe != nullptr;
  error.floor = rounding_floor(c.dtype);
  // What the probe would have moved under one rounding of the judged dtype.
  const double one_rounding = epsilon(c.dtype) / 2 / kProbePerturbation;
  std::vector<double> o, x;
  LaneErrors of_reference, of_twin;
  const bool has_lanes = c.tap.info.kind != TapKind::gradient &&
                         std::all_of(layout.rows().begin(), layout.rows().end(),
                                     [&](const Row& row) { return layout.keys(row) == nullptr; });
  for (const Row& row : layout.rows()) {
    RowError& out = error.rows.emplace_back();
    layout.gather(*oracle, row, o);
    out.norm = norm_of(o);
    out.elements = layout.judged_elements(row);
    const auto distance = [&](const HostTensor* side) {
      if (side == nullptr) return Difference{};
      layout.gather(*side, row, x);
      return difference(x, o);
    };
    const Difference k = distance(judged);
    out.judged = k.norm;
    out.largest = k.largest;
    const auto noise = [&](const HostTensor* side, LaneErrors& lanes) {
      const double norm = distance(side).norm;
      if (has_lanes && side != nullptr) lanes.add(x, o);
      return norm;
    };
    out.reference = std::max(noise(reference, of_reference), noise(twin, of_twin));
    out.probe = distance(probe).norm * one_rounding;
  }
  for (const LaneErrors* lanes : {&of_reference, &of_twin}) lanes->keep_larger_in(error.lanes);
  sum_up(error);
  // A float64 reference that is the oracle bit for bit says nothing about float64 noise.
  if (c.dtype == DType::float64 && error.reference == 0) error.has_reference = false;
  return error;
}

double element_noise(const TapError& error, const RowError& row, double expected, DType dtype,
                     int64_t lane) {
  const double root = std::sqrt(static_cast<double>(std::max<int64_t>(row.elements, 1)));
  double size = std::max(row.norm / root, std::fabs(expected));
  // A short row, or one of zeros, says little about the size of the terms that its values are sums
  // of.
  if (short_row_factor(row.elements) > 1 || row.norm == 0)
    size = std::max(size, error.norm / std::sqrt(static_cast<double>(error.elements)));
  const bool known = lane >= 0 && lane < static_cast<int64_t>(error.lanes.size());
  return std::max({ulp_at(expected, dtype), error.noise_relative() * size,
                   error.noise_of(row) / root,
                   known ? error.lanes[static_cast<size_t>(lane)] : 0.0});
}

Tail measure_tail(const Comparison& c, const RowLayout& layout, const TapError& error,
                  double threshold) {
  Tail tail;
  std::vector<double> o, k;
  for (size_t r = 0; r < error.rows.size(); ++r) {
    if (below_threshold(error, error.rows[r], threshold)) continue;
    layout.gather(*c.yardstick.oracle, layout.rows()[r], o);
    layout.gather(*c.judged, layout.rows()[r], k);
    for (size_t i = 0; i < o.size(); ++i) {
      if (k[i] == o[i]) continue;
      const double units = std::fabs(k[i] - o[i]) / element_noise(error, error.rows[r], o[i],
                                                                  c.dtype, static_cast<int64_t>(i));
      if (!(units <= threshold)) ++tail.beyond;
      if (units <= tail.largest || std::isnan(tail.largest)) continue;
      tail.largest = keep_larger(tail.largest, units);
      tail.element = layout.flat_index(layout.rows()[r], static_cast<int64_t>(i));
    }
  }
  return tail;
}

}  // namespace dsv32::harness
