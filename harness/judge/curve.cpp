#include "harness/judge/curve.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/limits.h"
#include "src/model/tensor.h"

namespace dsv32::harness {
namespace {

using golden::Band;

int64_t component_count(const Band& band) { return std::ssize(band.variances); }

double component(const Band& band, int64_t k, int64_t step) {
  return band.components.at(k * std::ssize(band.mean) + step);
}

double floor_at(const Band& band, int64_t step) {
  return limit_of("band.floor") * ulp_at(band.mean.at(step), DType::float32);
}

/// Mean square of the floor: what it amounts to along a direction of unit length.
double floor_variance(const Band& band) {
  double sum = 0;
  for (int64_t t = 0; t < std::ssize(band.mean); ++t) sum += floor_at(band, t) * floor_at(band, t);
  return sum / static_cast<double>(band.mean.size());
}

double mahalanobis(const Band& band, std::span<const double> curve) {
  if (curve.size() != band.mean.size()) return 0;
  const double floor = floor_variance(band);
  double distance = 0;
  for (int64_t k = 0; k < component_count(band); ++k) {
    double along = 0;
    for (size_t t = 0; t < curve.size(); ++t)
      along += component(band, k, static_cast<int64_t>(t)) * (curve[t] - band.mean[t]);
    distance += along * along / std::max(band.variances[k], floor);
  }
  return distance;
}

/// Variance of the sum of z over the first `steps`: the components together, what they leave of
/// each step's variance on its own.
double variance_of_sum(const Band& band, int64_t steps) {
  double variance = 0;
  for (int64_t k = 0; k < component_count(band); ++k) {
    double sum = 0;
    for (int64_t t = 0; t < steps; ++t) sum += component(band, k, t) / band_sigma(band, t);
    variance += band.variances[k] * sum * sum;
  }
  for (int64_t t = 0; t < steps; ++t) {
    double explained = 0;
    for (int64_t k = 0; k < component_count(band); ++k)
      explained += band.variances[k] * component(band, k, t) * component(band, k, t);
    const double sigma = band_sigma(band, t);
    variance += std::max(0.0, 1 - explained / (sigma * sigma));
  }
  return variance;
}

}  // namespace

double band_sigma(const Band& band, int64_t step) {
  return std::max(band.deviation.at(step), floor_at(band, step));
}

BandDistance distance_from_band(const Band& band, std::span<const double> curve) {
  BandDistance distance;
  double sum = 0;
  for (size_t i = 0; i < curve.size(); ++i) {
    const int64_t t = static_cast<int64_t>(i);
    const double z = (curve[i] - band.mean.at(i)) / band_sigma(band, t);
    sum += std::clamp(z, -1.0, 1.0);
    if (std::isnan(distance.largest_z) || std::fabs(z) <= distance.largest_z) continue;
    distance.largest_z = std::fabs(z);
    distance.step = t;
  }
  distance.mahalanobis = mahalanobis(band, curve);
  distance.persistence =
      std::fabs(sum) / std::sqrt(variance_of_sum(band, static_cast<int64_t>(curve.size())));
  return distance;
}

void add_band_to(Curve& curve, const Band& band) {
  const double z = limit_of("band.z");
  const size_t steps = std::min(curve.values.size(), band.mean.size());
  for (size_t t = 0; t < steps; ++t) {
    const double reach = z * band_sigma(band, static_cast<int64_t>(t));
    curve.low.push_back(band.mean[t] - reach);
    curve.high.push_back(band.mean[t] + reach);
  }
}

}  // namespace dsv32::harness
