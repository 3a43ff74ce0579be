#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "harness/judge/comparison.h"
#include "harness/judge/measure/rows.h"

/// Error norms of a tap against the oracle: the numbers that verdicts are made of.
namespace dsv32::harness {

/// L2 errors of one row.
struct RowError {
  double judged = 0;     // ||K - O||
  double reference = 0;  // ||R - O||, the larger of the reference and its twin
  double probe = 0;      // ||P - O||
  double norm = 0;       // ||O||
  double largest = 0;    // max |K - O|; NaN when there is one
  int64_t elements = 0;  // that are judged
  int64_t token = -1;    // whose heads' rows stray together; -1: a row of its own
};

/// All rows of a tap, and what follows for the whole tensor.
struct TapError {
  std::vector<RowError> rows;
  bool has_reference = false;
  bool has_probe = false;
  double judged = 0, reference = 0, probe = 0, norm = 0;  // L2 over all rows
  double rms_norm = 0;  // root of the mean square of the row norms
  int64_t elements = 0;
  /// How many elements carry the noise: fewer than `elements` where a few rows or lanes hold most
  /// of it, as with outlier channels. What a ratio of two norms strays by follows from it.
  double effective = 0;
  double effective_lanes = 0;  // of them, in a row; 0: every element of a row counts
  Modes modes = {};            // as TapDistance
  double floor = 0;            // rounding floor u of the judged dtype
  Siblings siblings = {};      // noise that they have and this tensor has at least
  /// Root mean square error of each lane (element of a row) over all rows, of the reference or its
  /// twin, the larger, where there is none of the probe: the noise of a rotation sits in the pairs
  /// of large angles. Empty where rows have keys in place of lanes.
  std::vector<double> lanes;
  /// An element's noise is that of its lane too; not in a gradient, whose rows are of different
  /// weights.
  bool by_lane = false;

  /// ||X - O|| / ||O||; NaN when the oracle is zero and X is not.
  double relative() const { return norm > 0 || judged > 0 ? judged / norm : 0; }
  /// ||R - O||, at least one rounding of every element and what the siblings have.
  double noise() const;
  /// ||K - O|| in units of the noise and of what a ratio over so few elements strays by.
  double tensor_ratio() const;
  /// The noise side: the reference's error, or the probe's when there is no reference.
  double noise_relative() const;
  double noise_of(const RowError& row) const;
  /// What a row's error is divided by.
  double denominator(const RowError& row) const;
  /// What the norm of this row's error may stray by, of how few values it is made.
  double allowance(const RowError& row) const;
  /// The judged error in units of the noise, and of what a row of so few values strays by.
  double row_ratio(const RowError& row) const {
    return row.judged / (denominator(row) * allowance(row));
  }
  /// What one rounding of the inputs, and one of the output, may do to a row.
  double sensitivity(const RowError& row) const;
  double scale(const RowError& row) const { return row.norm > rms_norm ? row.norm : rms_norm; }
};

/// Larger of two numbers; NaN wins over all.
double keep_larger(double a, double b);
/// |value - expected| / |expected|; 0 for equal numbers.
double relative(double value, double expected);
/// ||a - b|| / ||b|| in double; infinite when b is zero and a is not. Equal elements, infinite ones
/// among them, are no distance.
double relative(std::span<const double> a, std::span<const double> b);
double relative(const HostTensor& a, const HostTensor& b);

/// Norms over a layout. `judged` may be null (then only the yardstick's errors are filled in).
/// Throws Error (internal) when the tensors of the yardstick have different shapes.
TapError measure_rows(const Comparison& c, const RowLayout& layout, const HostTensor* judged);
/// What is left of `value` once it is measured against `oracle`; rows over keys: those of
/// `support`. nullopt: the tap is needed whole.
std::optional<TapDistance> distance_of(const TapName& tap, const HostTensor& value,
                                       const HostTensor& oracle, const Batch& batch,
                                       const std::vector<uint8_t>* support);
/// Fills the whole-tensor numbers from the rows.
void sum_up(TapError& error);

/// Noise of one element with oracle value `expected`, in a row with these errors; `lane`: its place
/// in the row, -1: that of no lane in particular.
double element_noise(const TapError& error, const RowError& row, double expected, DType dtype,
                     int64_t lane = -1);

/// Elements beyond the tail limits.
struct Tail {
  int64_t beyond = 0;    // count above `threshold`
  double largest = 0;    // in units of element noise
  int64_t element = -1;  // flat index of the largest
};
Tail measure_tail(const Comparison& c, const RowLayout& layout, const TapError& error,
                  double threshold);

}  // namespace dsv32::harness
