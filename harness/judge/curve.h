#pragma once

#include <cstdint>
#include <span>

#include "golden/reader/training_golden.h"
#include "harness/judge/verdict.h"

/// A free-running loss curve against the band of clean runs that a golden keeps. No torch.
namespace dsv32::harness {

/// A band's standard deviation at a step, at least two float32 units in the last place of the loss:
/// below that a loss is a matter of the order of its sums.
double band_sigma(const golden::Band& band, int64_t step);

/// How far a curve lies from a band.
struct BandDistance {
  double largest_z = 0;  // max over steps of |curve - mean| / sigma; NaN where the curve has one
  int64_t step = -1;     // of the largest z
  /// Squared Mahalanobis distance along the band's leading components; each variance is at least
  /// that of the floor of sigma. 0 for a curve shorter than the band: components belong to all
  /// steps.
  double mahalanobis = 0;
  /// Sign persistence: |sum of z, each cut to [-1, 1]| over the standard deviation that the band
  /// gives to the sum of z. Steps that the band moves together count as one, so a curve that stays
  /// on one side is only news where clean curves do not.
  double persistence = 0;
};
/// Where a curve of so many steps must stay: the mean, and the largest z that is allowed, to either
/// side.
void add_band_to(Curve& curve, const golden::Band& band);
/// `curve` may be shorter than the band.
BandDistance distance_from_band(const golden::Band& band, std::span<const double> curve);

}  // namespace dsv32::harness
