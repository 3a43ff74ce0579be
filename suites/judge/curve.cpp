// A free curve against a band of clean runs: the statistics, seen green and red.

#include "harness/judge/curve.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "harness/judge/adamw.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/statistics.h"
#include "src/model/philox.h"

namespace dsv32::suites {
namespace {

using golden::Band;
using harness::BandDistance;

constexpr int64_t kSteps = 20, kComponents = 5, kRuns = 64;
constexpr double kSpread = 1e-3;

/// A normal number, near enough: the sum of twelve uniform ones.
double bell(const PhiloxStream& stream, uint64_t i) {
  double sum = 0;
  for (uint64_t j = 0; j < 12; ++j) sum += stream.lane16(12 * i + j) / 65536.0;
  return sum - 6;
}

/// Losses falling from 5. The first component moves all steps alike, the others one step each; on
/// top of them every step has noise of its own.
Band make_band() {
  Band band{.runs = kRuns};
  for (int64_t t = 0; t < kSteps; ++t) band.mean.push_back(5 - 0.05 * static_cast<double>(t));
  band.components.assign(kComponents * kSteps, 0.0);
  band.variances.assign(kComponents, 2 * kSpread * kSpread);
  for (int64_t t = 0; t < kSteps; ++t)
    band.components[t] = 1 / std::sqrt(static_cast<double>(kSteps));
  band.variances[0] = kSteps * kSpread * kSpread;
  for (int64_t k = 1; k < kComponents; ++k) band.components[k * kSteps + k] = 1;
  band.deviation.assign(kSteps, std::sqrt(2.0) * kSpread);
  return band;
}

/// A curve as the band's clean runs are.
std::vector<double> clean_curve(const Band& band, uint64_t seed) {
  const PhiloxStream stream(seed, "curve");
  std::vector<double> curve = band.mean;
  const double together = kSpread * bell(stream, 0);
  for (size_t t = 0; t < curve.size(); ++t) curve[t] += together + kSpread * bell(stream, 1 + t);
  return curve;
}

harness::Measure distance_measure(const BandDistance& d) {
  return harness::by_limit("band.distance", {.components = kComponents, .runs = kRuns},
                           d.mahalanobis);
}

bool alarms(const Band& band, const std::vector<double>& curve) {
  const BandDistance d = harness::distance_from_band(band, curve);
  return !harness::by_limit("band.z", d.largest_z).within() || !distance_measure(d).within() ||
         !harness::by_limit("band.persistence", d.persistence).within();
}

TEST(Band, CleanCurvesRaiseNoAlarm) {
  const Band band = make_band();
  for (uint64_t seed = 1; seed <= 1000; ++seed)
    EXPECT_FALSE(alarms(band, clean_curve(band, seed))) << seed;
}

TEST(Band, OneFarStepIsTheLargestZ) {
  const Band band = make_band();
  std::vector<double> curve = band.mean;
  curve[7] += 100 * kSpread;
  const BandDistance d = harness::distance_from_band(band, curve);
  EXPECT_EQ(d.step, 7);
  EXPECT_FALSE(harness::by_limit("band.z", d.largest_z).within());
}

TEST(Band, AMoveAlongACalmDirectionIsFarByMahalanobis) {
  Band band = make_band();
  band.variances[3] = kSpread * kSpread / 1e4;  // clean runs hardly move there
  std::vector<double> curve = band.mean;
  curve[3] += kSpread;
  const BandDistance d = harness::distance_from_band(band, curve);
  EXPECT_TRUE(harness::by_limit("band.z", d.largest_z).within());
  EXPECT_FALSE(distance_measure(d).within());
}

TEST(Band, OneSidedCurveIsPersistentWhereCleanOnesAreNot) {
  Band band = make_band();
  band.variances[0] = 0;  // every step on its own
  std::vector<double> curve = band.mean;
  for (double& loss : curve) loss += 2 * kSpread;
  EXPECT_TRUE(
      harness::by_limit("band.z", harness::distance_from_band(band, curve).largest_z).within());
  const double alone = harness::distance_from_band(band, curve).persistence;
  const double together = harness::distance_from_band(make_band(), curve).persistence;
  EXPECT_GT(alone, 3 * together);
  std::vector<double> turning = band.mean;
  for (size_t t = 0; t < turning.size(); ++t) turning[t] += (t % 2 == 0 ? 2 : -2) * kSpread;
  EXPECT_GT(alone, 3 * harness::distance_from_band(band, turning).persistence);
}

TEST(Band, SigmaIsAtLeastTwoUlpOfTheLoss) {
  Band band = make_band();
  band.deviation.assign(kSteps, 0);
  EXPECT_EQ(harness::band_sigma(band, 0), 2 * std::ldexp(1.0, -21));  // of 5, in [4, 8)
}

TEST(Band, NanIsAlwaysAnAlarm) {
  const Band band = make_band();
  std::vector<double> curve = band.mean;
  curve[2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(alarms(band, curve));
}

// Quantiles of printed tables (F distribution, upper 5 % and 1 %).
TEST(Hotelling, QuantilesAgreeWithPrintedTables) {
  const auto hundredths = [](double value) { return std::lround(value * 100); };
  EXPECT_EQ(hundredths(harness::f_quantile(5, 60, 0.95)), 237);
  EXPECT_EQ(hundredths(harness::f_quantile(5, 60, 0.99)), 334);
  EXPECT_EQ(hundredths(harness::f_quantile(1, 10, 0.95)), 496);
  EXPECT_EQ(hundredths(harness::f_quantile(10, 1, 0.95)), 24188);
}

TEST(Hotelling, LimitTendsToChiSquareForManyRuns) {
  // Chi-square with 5 degrees of freedom, upper 5 %: 11.07.
  const auto limit = [](int64_t runs) { return harness::hotelling_limit(5, runs, 0.95); };
  EXPECT_EQ(std::lround(limit(1000000) * 100), 1107);
  EXPECT_GT(limit(64), limit(128));
}

// --- one update against AdamW's formula ---------------------------------------------------------

/// p = 1, m = v = 0, gradient 0.5, first step: m / sqrt(v) is 1 after bias correction.
TEST(AdamWFormula, FirstStepIsLearningRateTimesSign) {
  const harness::AdamWStep step{
      .lr = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 0, .weight_decay = 0.5};
  const std::vector<double> parameter = {1};
  const std::vector<float> gradient = {0.5F}, right = {0.85F}, without_decay = {0.9F};
  const auto roundings = [&](const std::vector<float>& updated) {
    return harness::check_update(step,
                                 {.parameter = parameter, .gradient = gradient, .updated = updated})
        .roundings;
  };
  EXPECT_TRUE(harness::by_limit("step.update", roundings(right)).within());
  EXPECT_FALSE(harness::by_limit("step.update", roundings(without_decay)).within());
  EXPECT_FALSE(harness::by_limit("step.update", roundings({std::nanf("")})).within());
}

/// A large tensor is checked in parts: the worst of all is told with its own place, the first of
/// equals, and NaN before any number.
TEST(AdamWFormula, TheWorstOfALargeTensorIsFound) {
  const harness::AdamWStep step{.lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
  constexpr size_t kSize = 300'000, kBad = 150'001, kLater = 299'999;
  const std::vector<double> parameter(kSize, 1);
  const std::vector<float> gradient(kSize, 0.5F);
  std::vector<float> updated(kSize, 0.9F);
  const auto worst = [&] {
    return harness::check_update(
        step, {.parameter = parameter, .gradient = gradient, .updated = updated});
  };
  EXPECT_TRUE(harness::by_limit("step.update", worst().roundings).within());
  updated[kBad] = updated[kLater] = 0.8F;
  EXPECT_EQ(worst().element, static_cast<int64_t>(kBad));
  EXPECT_EQ(worst().got, updated[kBad]);
  updated[kLater] = std::nanf("");
  EXPECT_EQ(worst().element, static_cast<int64_t>(kLater));
}

}  // namespace
}  // namespace dsv32::suites
