// Noise that sits in some lanes, or in few independent numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/lane_errors.h"
#include "harness/judge/measure/metrics.h"
#include "suites/kit/world.h"

namespace dsv32::suites {
namespace {

using harness::compare_values;
using harness::Comparison;
using harness::Verdict;

Verdict judge_with(World& world, const std::vector<double>& values) {
  world.corrupt("layers.0.attn.out", values);
  return compare_values(world.comparison("layers.0.attn.out"));
}

/// Moves lane `lane` of every judged row of a [B,S,size] tap, by `size` of the tensor's noise.
void move_lane(const World& world, int64_t lane, double size, std::vector<double>& values) {
  const int64_t width = std::ssize(values) / (world.c.B * world.c.S);
  const double rms = harness::measure_rows(
                         world.comparison("layers.0.attn.out"),
                         {*parse_tap("layers.0.attn.out"), world.truth("layers.0.attn.out").shape(),
                          &world.batch, nullptr, harness::RowView::judged},
                         nullptr)
                         .reference /
                     std::sqrt(static_cast<double>(values.size()));
  Noise sign(static_cast<uint64_t>(lane), "sign");
  for (int64_t row = 0; row < world.c.B * world.c.S; ++row)
    values[row * width + lane] += (sign.uniform() < 0.5 ? size : -size) * rms;
}

/// A rotation by large angles: the reference is far off in one lane, and so may the judged side be
/// there, and nowhere else.
TEST(SelfLanes, TheNoiseOfALaneIsItsOwn) {
  const std::string tap = "layers.0.attn.out";
  for (const int64_t lane : {5, 6}) {
    World world(13);
    std::vector<double> reference = world.truth(tap).to_doubles();
    move_lane(world, 5, 40, reference);
    std::vector<double> judged = world.values(tap);
    move_lane(world, lane, 160, judged);
    world.reference.put(
        tap, HostTensor::from_doubles(DType::float32, world.truth(tap).shape(), reference));
    const Verdict verdict = judge_with(world, judged);
    EXPECT_EQ(measure(verdict, "tail").within(), lane == 5) << show(verdict);
  }
}

/// Two outlier channels hold all noise: a ratio of two norms strays as one of few elements.
TEST(SelfLanes, FewLanesThatHoldTheNoiseMakeASmallTensor) {
  const std::string tap = "layers.0.attn.out";
  for (const int64_t lanes : {2, 64}) {
    World world(14);
    const std::vector<double> truth = world.truth(tap).to_doubles();
    std::vector<double> reference = truth, judged = truth;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      move_lane(world, lane, 20, reference);
      move_lane(world, lane, 34, judged);
    }
    world.reference.put(
        tap, HostTensor::from_doubles(DType::float32, world.truth(tap).shape(), reference));
    const Verdict verdict = judge_with(world, judged);
    EXPECT_EQ(measure(verdict, "tensor ratio").within(), lanes == 2) << show(verdict);
  }
}

/// Errors of 60 tokens in heads of 64 lanes, from so many independent numbers a head; `common`: the
/// same ones in each head.
harness::LaneErrors errors_of_modes(int64_t modes, int64_t heads = 1, bool common = false) {
  harness::LaneErrors errors(60);
  Noise noise(15, "modes");
  const std::vector<double> truth(64, 1);
  for (int token = 0; token < 60; ++token) {
    std::vector<double> numbers(static_cast<size_t>(modes)), values(64);
    for (int64_t h = 0; h < heads; ++h) {
      for (double& number : numbers)
        if (h == 0 || !common) number = noise.normal();
      for (size_t i = 0; i < values.size(); ++i) values[i] = 1 + 1e-3 * numbers[i % numbers.size()];
      errors.add(values, truth, heads > 1 ? token : -1);
    }
  }
  return errors;
}

/// Within a factor of two.
void expect_about(double got, double want) {
  EXPECT_GT(got, want / 2);
  EXPECT_LT(got, want * 2);
}

/// A factor that is off moves whole rows along a line: every lane strays, but as one number.
TEST(SelfLanes, LanesThatStrayTogetherCountAsOne) {
  for (const double modes : {1, 4, 16, 64}) {
    const Modes found = errors_of_modes(static_cast<int64_t>(modes)).modes();
    expect_about(found.row, modes);
    EXPECT_EQ(found.row, found.token);
  }
  harness::LaneErrors few(4);
  few.add({1, 2}, {1, 1});
  EXPECT_EQ(few.modes().row, 0) << "too few rows to tell";
  EXPECT_EQ(harness::fewer(0, 3), 3);
  EXPECT_EQ(harness::fewer(5, 3), 3);
}

/// Large tensors are measured in ranges of rows.
TEST(SelfLanes, RangesOfRowsGiveWhatTheWholeGives) {
  constexpr int kTokens = 500, kHeads = 3, kCut = 123;
  harness::LaneErrors whole(kTokens), first(kTokens), second(kTokens, kCut);
  Noise noise(16, "ranges");
  const std::vector<double> truth(8, 1);
  for (int token = 0; token < kTokens; ++token)
    for (int h = 0; h < kHeads; ++h) {
      std::vector<double> values(truth);
      for (double& value : values) value += std::round(8 * noise.normal()) / 1024;  // exact sums
      whole.add(values, truth, token);
      (token < kCut ? first : second).add(values, truth, token);
    }
  first.append(second);
  EXPECT_EQ(first.modes().row, whole.modes().row);
  EXPECT_EQ(first.modes().token, whole.modes().token);
  EXPECT_EQ(first.rms(), whole.rms());
  EXPECT_EQ(first.rms().size(), truth.size());
}

/// The heads of a token are made of one vector: where it is off, all of them are.
TEST(SelfLanes, HeadsThatStrayTogetherCountAsOne) {
  const Modes common = errors_of_modes(2, 8, true).modes(),
              own = errors_of_modes(2, 8, false).modes();
  expect_about(common.row, 2);
  expect_about(common.token, 2);
  expect_about(own.row, 2);
  expect_about(own.token, 16);
}

/// Ten tokens of eight heads, one of them with nearly all of the noise: a ratio of norms strays as
/// one of that token's numbers, not as one of eighty rows.
TEST(SelfLanes, TheNoiseOfOneTokenIsThatOfFewNumbers) {
  harness::TapError error;
  error.has_reference = true;
  error.lanes.assign(16, 1e-3);
  error.modes = {.row = 1, .token = 1};
  for (int64_t token = 0; token < 10; ++token)
    error.rows.insert(error.rows.end(), 8,
                      {.judged = token == 3 ? 5.0 : 0.1,
                       .reference = token == 3 ? 1.0 : 0.1,
                       .norm = 1,
                       .elements = 16,
                       .token = token});
  harness::sum_up(error);
  const double limit =
      harness::limits_for(*parse_tap("layers.0.q_nope"), harness::Mode::forced, DType::float32)
          .tensor_ratio;
  EXPECT_LT(error.effective, 2);
  EXPECT_LT(error.tensor_ratio(), limit);
  for (harness::RowError& row : error.rows) row.token = -1;
  harness::sum_up(error);
  EXPECT_GT(error.effective, 8);
}

/// Of rows over keys too, which have no lanes of their own.
TEST(SelfLanes, KeysThatStrayTogetherAreCounted) {
  const World world(16);
  const Comparison c = world.comparison("layers.0.ix.scores");
  const harness::RowLayout layout(c.tap, c.yardstick.oracle->shape(), c.batch, nullptr,
                                  harness::RowView::judged);
  const harness::TapError error = harness::measure_rows(c, layout, nullptr);
  EXPECT_TRUE(error.lanes.empty());
  EXPECT_GT(error.modes.row, 5);
  EXPECT_LT(error.modes.row, 33);
}

/// A query that sees two keys: one probe of it may be near by chance.
TEST(SelfLanes, AShortRowIsAtLeastAsSensitiveAsItsTensor) {
  harness::TapError error;
  for (const int64_t elements : {2, 256}) {
    error.rows.assign(100, {.probe = 1e-4, .norm = 1, .elements = elements});
    error.rows[0].probe = 0;
    error.floor = 1e-8;
    harness::sum_up(error);
    EXPECT_GE(error.sensitivity(error.rows[1]), error.rows[1].probe);
    EXPECT_EQ(error.sensitivity(error.rows[0]) > error.rows[1].probe / 2, elements == 2);
  }
}

/// And a row of them strays as one of few elements.
TEST(SelfLanes, FewLanesThatHoldTheNoiseMakeShortRows) {
  for (const size_t lanes : {1, 4, 256}) {
    harness::TapError error;
    error.lanes.assign(256, 0);
    std::fill_n(error.lanes.begin(), lanes, 1e-3);
    error.rows.assign(100, {.judged = 6, .reference = 1, .norm = 1, .elements = 256});
    error.has_reference = true;
    harness::sum_up(error);
    EXPECT_EQ(std::lround(error.effective_lanes), static_cast<long>(lanes));
    EXPECT_DOUBLE_EQ(error.allowance(error.rows[0]),
                     harness::short_row_factor(error.effective_lanes));
    EXPECT_DOUBLE_EQ(error.row_ratio(error.rows[0]) * error.allowance(error.rows[0]), 6);
    EXPECT_EQ(error.allowance(error.rows[0]) > 1, lanes < 64) << lanes;
  }
}

}  // namespace
}  // namespace dsv32::suites
