#include "harness/judge/measure/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "harness/judge/limits.h"
#include "harness/judge/measure/lane_errors.h"
#include "harness/judge/measure/sum.h"
#include "src/model/at_once.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

struct Difference {
  double norm = 0;
  double largest = 0;
};

Difference difference(const std::vector<double>& a, const std::vector<double>& b) {
  const double sum = sum_of(a.size(), [&](size_t i) { return (a[i] - b[i]) * (a[i] - b[i]); });
  if (std::isnan(sum)) return {sum, sum};  // squares make no NaN of anything else
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::fabs(a[i] - b[i]));
  return {std::sqrt(sum), largest};
}

double norm_of(const std::vector<double>& values) {
  return std::sqrt(sum_of(values.size(), [&](size_t i) { return values[i] * values[i]; }));
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

double TapError::tensor_ratio() const {
  return judged / (noise() * small_tensor_factor(effective));
}

double TapError::noise() const {
  return std::max(reference, std::max(floor, siblings.reference) * norm);
}

double TapError::noise_relative() const {
  const double noise = has_reference ? reference : probe_noise() * probe;
  const double others = has_reference ? siblings.reference : probe_noise() * siblings.probe;
  return norm > 0 ? std::max({noise / norm, floor, others}) : floor;
}

double TapError::noise_of(const RowError& row) const {
  return has_reference ? row.reference : probe_noise() * row.probe;
}

double TapError::denominator(const RowError& row) const {
  return std::max(row.reference, noise_relative() * scale(row));
}

double TapError::allowance(const RowError& row) const {
  const auto all = static_cast<double>(row.elements);
  return short_row_factor(effective_lanes > 0 ? std::min(all, effective_lanes) : all);
}

double TapError::sensitivity(const RowError& row) const {
  // One draw over few values may be small by chance: then that of the whole tensor counts.
  const double drawn = allowance(row) > 1 && norm > 0 ? probe / norm : 0;
  return std::max(row.probe, std::max(drawn, siblings.probe) * scale(row)) + floor * scale(row);
}

namespace {

/// Of squares that are summed: (sum x^2)^2 / sum x^4, the number of equal ones that stray as much.
template <typename Range, typename Value>
double effective_number(const Range& range, Value value) {
  double squares = 0, fourths = 0;
  for (const auto& item : range) {
    const double square = std::pow(value(item), 2);
    squares += square;
    fourths += square * square;
  }
  return fourths > 0 ? squares * squares / fourths : 0;
}

/// As effective_number of n normal values' errors, which stray by themselves: 1 + 2 / n takes it
/// back.
template <typename Range, typename Value>
double effective_of(const Range& range, Value value) {
  const auto n = static_cast<double>(range.size());
  return n == 0 ? 0 : std::min(n, effective_number(range, value) * (1 + 2 / n));
}

/// The reference's error of each token, of all its heads: they are made of one and the same vector.
std::vector<double> token_errors(const TapError& error) {
  std::vector<double> squares;
  int64_t token = -1;
  for (const RowError& row : error.rows) {
    if (token < 0 || row.token != token) squares.push_back(0);
    squares.back() += row.reference * row.reference;
    token = row.token;
  }
  for (double& square : squares) square = std::sqrt(square);
  return squares;
}

void find_effective(TapError& error) {
  const std::vector<double> tokens = token_errors(error);
  const double rows = effective_of(tokens, [](double token) { return token; });
  const double lanes = effective_of(error.lanes, [](double lane) { return lane; });
  error.effective_lanes = fewer(error.modes.row, lanes);
  error.effective = static_cast<double>(error.elements);
  const auto heads = static_cast<double>(error.rows.size()) / static_cast<double>(tokens.size());
  const double of_token = fewer(error.modes.token, heads * error.effective_lanes);
  if (rows > 0 && of_token > 0) error.effective = std::min(error.effective, rows * of_token);
}

}  // namespace

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
  find_effective(error);
}

namespace {

/// The distance of a run to the oracle, row by row: measured now, or before its tap was dropped.
class Side {
 public:
  Side(const HostTensor* tensor, const TapDistance* distance, const RowLayout& layout)
      : tensor_(tensor),
        distance_(distance),
        tokens_(layout.tokens()),
        over_keys_(!layout.rows().empty() && layout.keys(layout.rows()[0]) != nullptr),
        lanes_(tokens_) {}

  /// The same run, for a range of the rows; goes back to the whole by append.
  Side part(const RowRange& range) const {
    Side side = *this;
    side.lanes_ = LaneErrors(tokens_, range.first_token);
    return side;
  }
  void append(Side part) { lanes_.append(std::move(part.lanes_)); }

  bool there() const { return tensor_ != nullptr || distance_ != nullptr; }

  /// ||X - O|| of a row with these oracle values.
  double norm(const RowLayout& layout, const Row& row, const std::vector<double>& o) {
    if (tensor_ != nullptr) {
      layout.gather(*tensor_, row, x_);
      lanes_.add(x_, o, row.token());
      return difference(x_, o).norm;
    }
    if (distance_ == nullptr) return 0;
    double square = 0;
    for (const int64_t number : layout.judged_rows(row))
      square += std::pow(distance_->rows.at(static_cast<size_t>(number)), 2);
    return std::sqrt(square);
  }

  /// None where rows have keys in place of lanes.
  std::vector<double> lanes() const {
    if (distance_ != nullptr) return distance_->lanes;
    return over_keys_ ? std::vector<double>{} : lanes_.rms();
  }
  Modes modes() const { return distance_ != nullptr ? distance_->modes : lanes_.modes(); }

 private:
  const HostTensor* tensor_;
  const TapDistance* distance_;
  int64_t tokens_;
  bool over_keys_;
  LaneErrors lanes_;
  std::vector<double> x_;
};

/// Calls measure(range, sides) for all ranges of rows, several at once, each with sides of its own;
/// afterwards `sides` know all rows.
template <size_t kSides, typename Measure>
void for_ranges(const RowLayout& layout, std::array<Side, kSides>& sides, const Measure& measure) {
  const std::vector<RowRange> ranges = layout.chunks();
  std::vector<std::array<Side, kSides>> parts(ranges.size(), sides);
  at_once(ranges.size(), [&](size_t r) {
    for (size_t s = 0; s < kSides; ++s) parts[r][s] = sides[s].part(ranges[r]);
    measure(ranges[r], parts[r]);
  });
  for (auto& part : parts)
    for (size_t s = 0; s < kSides; ++s) sides[s].append(std::move(part[s]));
}

}  // namespace

TapError measure_rows(const Comparison& c, const RowLayout& layout, const HostTensor* judged) {
  const Yardstick& y = c.yardstick;
  for (const HostTensor* other : {y.reference, y.probe, y.twin})
    if (other != nullptr) expect_shape(c.tap, *other, y.oracle->shape());
  std::array sides = {Side(y.reference, y.reference_distance, layout),
                      Side(y.twin, y.twin_distance, layout),
                      Side(y.probe, y.probe_distance, layout)};
  const auto& [reference, twin, probe] = sides;
  TapError error;
  error.has_reference = reference.there();
  error.has_probe = probe.there();
  error.floor = rounding_floor(c.dtype);
  error.siblings = c.siblings;
  error.by_lane = c.tap.info.kind != TapKind::gradient;
  // What the probe would have moved under one rounding of the judged dtype.
  const double one_rounding = epsilon(c.dtype) / 2 / kProbePerturbation;
  error.rows.resize(layout.rows().size());
  for_ranges(layout, sides, [&](const RowRange& range, auto& parts) {
    auto& [own_reference, own_twin, own_probe] = parts;
    std::vector<double> o, k;
    for (size_t i = range.begin; i < range.end; ++i) {
      const Row& row = layout.rows()[i];
      RowError& out = error.rows[i];
      out.token = row.token();
      layout.gather(*y.oracle, row, o);
      out.norm = norm_of(o);
      out.elements = layout.judged_elements(row);
      if (judged != nullptr) {
        layout.gather(*judged, row, k);
        const Difference d = difference(k, o);
        out.judged = d.norm;
        out.largest = d.largest;
      }
      out.reference = std::max(own_reference.norm(layout, row, o), own_twin.norm(layout, row, o));
      out.probe = own_probe.norm(layout, row, o) * one_rounding;
    }
  });
  for (const Side* side : {&reference, &twin}) {
    keep_larger_lanes(side->lanes(), error.lanes);
    error.modes = fewer(error.modes, side->modes());
  }
  if (!error.has_reference && error.has_probe) {
    error.lanes = probe.lanes();
    error.modes = probe.modes();
    for (double& lane : error.lanes) lane *= one_rounding * probe_noise();
  }
  sum_up(error);
  // A float64 reference that is the oracle bit for bit says nothing about float64 noise.
  if (c.dtype == DType::float64 && error.reference == 0) error.has_reference = false;
  return error;
}

std::optional<TapDistance> distance_of(const TapName& tap, const HostTensor& value,
                                       const HostTensor& oracle, const Batch& batch,
                                       const std::vector<uint8_t>* support) {
  // Decisions are replayed, and what they follow from is looked at element by element.
  const TapKind kind = tap.info.kind;
  const bool whole = tap.info.is_decision() || kind == TapKind::scores || kind == TapKind::scalar ||
                     kind == TapKind::series || tap.info.name == "router.logits";
  if (whole || value.shape() != oracle.shape()) return std::nullopt;
  const RowLayout layout(tap, oracle.shape(), &batch, support, RowView::judged);
  TapDistance distance;
  std::array sides = {Side(&value, nullptr, layout)};
  const auto& numbered = layout.rows();
  if (!numbered.empty()) distance.rows.resize(static_cast<size_t>(numbered.back().number) + 1);
  for_ranges(layout, sides, [&](const RowRange& range, auto& parts) {
    std::vector<double> o;
    for (size_t i = range.begin; i < range.end; ++i) {
      layout.gather(oracle, numbered[i], o);
      distance.rows[static_cast<size_t>(numbered[i].number)] =
          parts[0].norm(layout, numbered[i], o);
    }
  });
  distance.lanes = sides[0].lanes();
  distance.modes = sides[0].modes();
  return distance;
}

double element_noise(const TapError& error, const RowError& row, double expected, DType dtype,
                     int64_t lane) {
  const double root = std::sqrt(static_cast<double>(std::max<int64_t>(row.elements, 1)));
  double size = std::max(row.norm / root, std::fabs(expected));
  // A short row, or one of zeros, says little about the size of the terms that its values are sums
  // of.
  if (short_row_factor(static_cast<double>(row.elements)) > 1 || row.norm == 0)
    size = std::max(size, error.norm / std::sqrt(static_cast<double>(error.elements)));
  const bool known = error.by_lane && lane >= 0 && lane < static_cast<int64_t>(error.lanes.size());
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
