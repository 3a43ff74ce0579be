// The judge's numbers on continuous taps: each metric passes clean noise, fails its corruption, and
// fails NaN.
#include "harness/judge/measure/metrics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "suites/kit/world.h"

namespace dsv32::suites {
namespace {

using harness::compare_values;
using harness::Comparison;
using harness::Measure;
using harness::Mode;
using harness::Trust;
using harness::Verdict;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kDraws = 300;
constexpr int kWorlds = 50;  // of each dtype

// One tap of each kind of row.
const std::vector<std::string> kTaps = {"layers.0.attn.out",
                                        "layers.0.q_nope",
                                        "layers.1.ix.k",
                                        "layers.1.ix.weights",
                                        "layers.1.ix.scores",
                                        "layers.0.attn.logits",
                                        "layers.0.attn.probs",
                                        "layers.1.router.logits",
                                        "layers.1.router.weights",
                                        "logits",
                                        "loss.lm",
                                        "grad.model.norm.weight",
                                        "grad.model.layers.1.mlp.gate.weight",
                                        "grad.model.layers.1.mlp.experts.3.up_proj.weight"};

// A corrupted copy of one judged tap.
Verdict judge_with(World& world, const std::string& tap, const std::vector<double>& values,
                   Mode mode = Mode::forced) {
  world.corrupt(tap, values);
  return compare_values(world.comparison(tap, mode));
}

// First element of row (b, s) of a [B,S,size] tap.
int64_t row_start(const World& world, int64_t b, int64_t s, int64_t size) {
  return (b * world.c.S + s) * size;
}

TEST(SelfMetrics, NanIsNeverWithinLimit) {
  const Measure nan{"row ratio", kNaN, 3, ""};
  EXPECT_FALSE(nan.within());
  EXPECT_EQ(nan.margin(), kInfinity);
  EXPECT_TRUE((Measure{"exact", 0, 0, ""}.within()));
  EXPECT_EQ((Measure{"exact", 0, 0, ""}.margin()), 0);
  EXPECT_EQ((Measure{"exact", 1, 0, ""}.margin()), kInfinity);
  EXPECT_EQ((Measure{"cap", 2, 8, ""}.margin()), 0.25);
}

TEST(SelfMetrics, TheLargerOfANumberAndNanIsNan) {
  EXPECT_TRUE(std::isnan(harness::keep_larger(kNaN, 1)));
  EXPECT_TRUE(std::isnan(harness::keep_larger(1, kNaN)));
  EXPECT_EQ(harness::keep_larger(1, 2), 2);
}

TEST(SelfMetrics, CleanNoiseNeverAlarms) {
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (uint64_t seed = 1; seed <= kWorlds; ++seed) {
      const World world(seed, dtype);
      for (const std::string& tap : kTaps) {
        const Verdict verdict = compare_values(world.comparison(tap));
        EXPECT_TRUE(passes(verdict)) << "seed " << seed << ": " << show(verdict);
      }
    }
}

// Dot products of the same float32 numbers, added up in one of three orders.
double dot(const std::vector<float>& products, int order) {
  float parts[8] = {};
  for (size_t i = 0; i < products.size(); ++i) {
    const size_t at = order == 0 ? i : products.size() - 1 - i;
    parts[order == 2 ? i % 8 : 0] += products[at];
  }
  return std::accumulate(parts, parts + 8, 0.0F);
}

TEST(SelfMetrics, OtherOrdersOfSummationNeverAlarm) {
  World world(1);
  const std::string tap = "layers.0.q_latent";
  const int64_t count = world.truth(tap).numel();
  for (uint64_t seed = 1; seed <= kDraws; ++seed) {
    Noise noise(seed, "products");
    std::vector<double> exact(count), sums[3];
    std::vector<float> products(24);
    for (double& value : exact) {
      for (float& product : products) product = static_cast<float>(noise.normal());
      value = std::accumulate(products.begin(), products.end(), 0.0);
      for (int order = 0; order < 3; ++order) sums[order].push_back(dot(products, order));
    }
    const Shape shape = world.truth(tap).shape();
    world.oracle.put(tap, HostTensor::from_doubles(DType::float64, shape, exact));
    world.reference.put(tap, HostTensor::from_doubles(DType::float32, shape, sums[0]));
    world.probe.erase(tap);
    for (int order = 1; order < 3; ++order) {
      const Verdict verdict = judge_with(world, tap, sums[order], Mode::staged);
      ASSERT_TRUE(passes(verdict)) << "seed " << seed << ": " << show(verdict);
    }
  }
}

TEST(SelfMetrics, BitwiseEqualSidesPass) {
  World world(2);
  for (const std::string& tap : kTaps) {
    world.judged.put(tap, *world.reference.find(tap));
    EXPECT_TRUE(passes(compare_values(world.comparison(tap)))) << tap;
    world.corrupt(tap, world.truth(tap).to_doubles());
    EXPECT_TRUE(passes(compare_values(world.comparison(tap)))) << tap;
  }
}

TEST(SelfMetrics, NanAndInfinityFailEveryTap) {
  for (const double bad : {kNaN, kInfinity, -kInfinity})
    for (const std::string& tap : kTaps) {
      World world(3);
      std::vector<double> values = world.values(tap);
      // The diagonal key of the last query of row 0 is always visible; it is made attended.
      int64_t at = std::ssize(values) / 2 - 1;
      const int64_t diagonal = (world.c.S - 1) * world.c.S + world.c.S - 1;
      for (auto& keys : world.support) keys[diagonal] = 1;
      if (tap.find("attn.") != std::string::npos || tap.find("scores") != std::string::npos)
        at = diagonal;
      if (tap == "layers.0.attn.out") at = row_start(world, 0, 7, 64);
      if (tap == "loss.lm") at = 0;
      values[at] = bad;
      const Verdict verdict = judge_with(world, tap, values);
      EXPECT_TRUE(fails(verdict)) << bad << ": " << show(verdict);
      ASSERT_TRUE(verdict.worst) << tap;
      EXPECT_FALSE(std::isfinite(verdict.worst->got)) << show(verdict);
    }
}

TEST(SelfMetrics, RowRatioCatchesOneNoisyRow) {
  World world(4);
  const std::string tap = "layers.0.attn.out";
  std::vector<double> values = world.values(tap);
  const std::vector<double> truth = world.truth(tap).to_doubles();
  for (int64_t i = row_start(world, 1, 20, 64); i < row_start(world, 1, 21, 64); ++i)
    values[i] = truth[i] + 6 * (values[i] - truth[i]);
  const Verdict verdict = judge_with(world, tap, values);
  EXPECT_TRUE(fails(verdict));
  EXPECT_FALSE(measure(verdict, "row ratio").within()) << show(verdict);
  EXPECT_TRUE(measure(verdict, "max tail").within()) << show(verdict);
  EXPECT_EQ(verdict.worst->index[0], 1);
  EXPECT_EQ(verdict.worst->index[1], 20);
}

TEST(SelfMetrics, TensorRatioCatchesTwiceTheNoiseEverywhere) {
  World world(5);
  const std::string tap = "layers.0.attn.out";
  std::vector<double> values = world.values(tap);
  const std::vector<double> truth = world.truth(tap).to_doubles();
  for (size_t i = 0; i < values.size(); ++i) values[i] = truth[i] + 2 * (values[i] - truth[i]);
  const Verdict verdict = judge_with(world, tap, values);
  EXPECT_FALSE(measure(verdict, "tensor ratio").within()) << show(verdict);
  EXPECT_TRUE(measure(verdict, "row ratio").within()) << show(verdict);
}

TEST(SelfMetrics, CapAloneDecidesWithoutAReference) {
  World world(6);
  const std::string tap = "layers.1.hidden";
  Comparison c = world.comparison(tap);
  c.yardstick.reference = nullptr;
  const Verdict clean = compare_values(c);
  EXPECT_TRUE(passes(clean)) << show(clean);
  EXPECT_EQ(std::ssize(clean.measures), 3);  // cap, tail, max tail
  std::vector<double> values = world.values(tap);
  for (double& value : values) value *= 1 + 1e-4;
  world.corrupt(tap, values);
  c.judged = world.judged.find(tap);
  EXPECT_FALSE(measure(compare_values(c), "cap").within());
  values[64] = kNaN;
  world.corrupt(tap, values);
  c.judged = world.judged.find(tap);
  EXPECT_FALSE(measure(compare_values(c), "cap").within());
}

TEST(SelfMetrics, ACapHoldsEvenWhenTheReferenceIsWorse) {
  World world(7);
  const std::string tap = "layers.1.hidden";
  std::vector<double> values = world.truth(tap).to_doubles();
  for (double& value : values) value *= 1.001;
  world.corrupt(tap, values);
  world.reference.put(tap, *world.judged.find(tap));
  const Verdict verdict = compare_values(world.comparison(tap));
  EXPECT_TRUE(measure(verdict, "row ratio").within());
  EXPECT_FALSE(measure(verdict, "cap").within()) << show(verdict);
}

// In a gradient the tail is wide (an expert of one token): there the row ratio catches it.
/// More than one op lies between what is there and the tap.
TEST(SelfMetrics, AStageThatIsFedInPartHasTheCapOfAForcedRun) {
  const World world(12);
  Comparison c = world.comparison("layers.0.attn.ctx", Mode::staged);
  const auto& staged = harness::limits_for(c.tap, Mode::staged, c.dtype);
  const auto& forced = harness::limits_for(c.tap, Mode::forced, c.dtype);
  ASSERT_LT(staged.cap, forced.cap);
  for (const bool in_part : {false, true}) {
    c.fed_in_part = in_part;
    const Verdict verdict = compare_values(c);
    EXPECT_EQ(measure(verdict, "cap").limit, in_part ? forced.cap : staged.cap);
    EXPECT_EQ(measure(verdict, "row ratio").limit, staged.row_ratio);
  }
}

TEST(SelfMetrics, TheLargestElementMovedBy128NoisesIsCaught) {
  for (const std::string& tap : kTaps) {
    World world(8);
    std::vector<double> values = world.values(tap);
    const std::vector<double> truth = world.truth(tap).to_doubles();
    const Comparison c = world.comparison(tap);
    int64_t largest = -1;
    for (int64_t i = 0; i < std::ssize(truth); ++i) {
      const bool judged = std::isfinite(truth[i]) && harness::element_noise(c, i) > 0;
      if (judged && (largest < 0 || std::fabs(truth[i]) > std::fabs(truth[largest]))) largest = i;
      if (i > 500 && largest >= 0) break;
    }
    values[largest] += 128 * harness::element_noise(c, largest);
    const Verdict verdict = judge_with(world, tap, values);
    const bool gradient = parse_tap(tap)->info.kind == TapKind::gradient;
    EXPECT_EQ(verdict.trust, Trust::fail) << show(verdict);
    EXPECT_FALSE(measure(verdict, gradient ? "row ratio" : "max tail").within()) << show(verdict);
  }
}

TEST(SelfMetrics, TailCountsElementsBeyondItsThreshold) {
  World world(9);
  const std::string tap = "logits";
  const harness::TapLimits& limits =
      harness::limits_for(*parse_tap(tap), Mode::forced, DType::float32);
  const Comparison c = world.comparison(tap);
  std::vector<double> values = world.truth(tap).to_doubles();
  const auto move = [&](int64_t i) {
    values[i] += 1.5 * limits.tail * harness::element_noise(c, i);
  };
  for (int64_t k = 0; k < limits.tail_count; ++k) move(100 * k);
  EXPECT_TRUE(measure(judge_with(world, tap, values), "tail").within());
  move(100 * static_cast<int64_t>(limits.tail_count));
  const Verdict verdict = judge_with(world, tap, values);
  EXPECT_FALSE(measure(verdict, "tail").within()) << show(verdict);
  EXPECT_TRUE(measure(verdict, "max tail").within()) << show(verdict);
}

/// The comparison with the distances of its yardstick's runs in place of their taps.
struct Measured {
  explicit Measured(const Comparison& c) : comparison(c) {
    drop(comparison.yardstick.reference, reference, comparison.yardstick.reference_distance);
    drop(comparison.yardstick.probe, probe, comparison.yardstick.probe_distance);
  }
  void drop(const HostTensor*& side, std::optional<TapDistance>& distance,
            const TapDistance*& place) {
    distance = harness::distance_of(comparison.tap, *side, *comparison.yardstick.oracle,
                                    *comparison.batch, comparison.support);
    if (!distance) return;
    side = nullptr;
    place = &*distance;
  }
  std::optional<TapDistance> reference, probe;
  Comparison comparison;
};

TEST(SelfMetrics, ADistanceServesAsWellAsItsTensor) {
  const World world(12);
  int dropped = 0;
  for (const std::string& tap : kTaps) {
    const Comparison c = world.comparison(tap);
    const Measured measured(c);
    dropped += measured.reference.has_value() ? 1 : 0;
    const Verdict whole = compare_values(c), spare = compare_values(measured.comparison);
    ASSERT_EQ(whole.measures.size(), spare.measures.size()) << tap;
    for (size_t i = 0; i < whole.measures.size(); ++i)
      EXPECT_DOUBLE_EQ(whole.measures[i].measured, spare.measures[i].measured)
          << tap << " " << whole.measures[i].metric;
    const harness::RowLayout rows(c.tap, world.truth(tap).shape(), c.batch, c.support,
                                  harness::RowView::sketch);
    const harness::TapError a = harness::measure_rows(c, rows, c.judged);
    const harness::TapError b = harness::measure_rows(measured.comparison, rows, c.judged);
    for (size_t r = 0; r < a.rows.size(); ++r) {
      EXPECT_DOUBLE_EQ(a.rows[r].reference, b.rows[r].reference) << tap << " row " << r;
      EXPECT_DOUBLE_EQ(a.rows[r].probe, b.rows[r].probe) << tap << " row " << r;
    }
  }
  EXPECT_EQ(dropped, std::ssize(kTaps) - 3);  // scores, router.logits and a scalar stay whole
}

TEST(SelfMetrics, OneRowScaledByOnePercentIsCaught) {
  for (const std::string tap : {"layers.0.attn.out", "layers.1.router.weights", "logits"}) {
    World world(10);
    std::vector<double> values = world.values(tap);
    const int64_t size = world.truth(tap).numel() / (world.c.B * world.c.S);
    for (int64_t i = row_start(world, 0, 9, size); i < row_start(world, 0, 10, size); ++i)
      values[i] *= 1.01;
    const Verdict verdict = judge_with(world, tap, values);
    EXPECT_TRUE(fails(verdict)) << show(verdict);
    EXPECT_NE(verdict.structure.find("one row (b 0, s 9)"), std::string::npos) << show(verdict);
  }
}

TEST(SelfMetrics, TwoSwappedRowsAreCaught) {
  World world(11);
  const std::string tap = "layers.0.attn.out";
  std::vector<double> values = world.values(tap);
  for (int64_t i = 0; i < 64; ++i) std::swap(values[10 * 64 + i], values[11 * 64 + i]);
  EXPECT_TRUE(fails(judge_with(world, tap, values)));
}

TEST(SelfMetrics, PaddedRowsAreNeverJudged) {
  World world(12);
  for (const std::string tap :
       {"layers.0.attn.out", "layers.0.ix.k", "layers.0.q_rope", "layers.0.ix.scores"}) {
    std::vector<double> values = world.values(tap);
    const int64_t size = world.truth(tap).numel() / (world.c.B * world.c.S);
    for (int64_t i = row_start(world, 1, 0, size); i < row_start(world, 1, world.c.pad, size); ++i)
      values[i] = kNaN;
    const Verdict verdict = judge_with(world, tap, values);
    EXPECT_TRUE(passes(verdict)) << show(verdict);
    values[row_start(world, 1, world.c.pad, size)] += 1;
    if (tap != std::string("layers.0.ix.scores")) {
      EXPECT_TRUE(fails(judge_with(world, tap, values))) << tap;
    }
  }
}

TEST(SelfMetrics, ZeroOracleDemandsExactZero) {
  World world(13);
  const std::string tap = "grad.model.layers.1.mlp.experts.5.up_proj.weight";
  const Shape shape = world.truth(tap).shape();
  world.oracle.put(tap, HostTensor(DType::float64, shape));
  std::vector<double> zero(numel(shape));
  EXPECT_TRUE(passes(judge_with(world, tap, zero)));
  zero[3] = -0.0;
  EXPECT_TRUE(passes(judge_with(world, tap, zero)));
  zero[7] = 1e-38;
  const Verdict verdict = judge_with(world, tap, zero);
  EXPECT_TRUE(fails(verdict));
  EXPECT_FALSE(measure(verdict, "exact").within());
  zero[7] = kNaN;
  EXPECT_TRUE(fails(judge_with(world, tap, zero)));
}

TEST(SelfMetrics, ScoresAreMinusInfinityExactlyWhereAKeyIsNotVisible) {
  const std::string tap = "layers.0.ix.scores";
  const auto with = [&](int64_t t, double value) {
    World world(14);
    std::vector<double> values = world.values(tap);
    values[row_start(world, 0, 20, world.c.S) + t] = value;
    return judge_with(world, tap, values);
  };
  EXPECT_TRUE(fails(with(21, 0)));
  EXPECT_TRUE(fails(with(21, -3.4e38)));
  EXPECT_TRUE(fails(with(21, kNaN)));
  EXPECT_TRUE(fails(with(20, -kInfinity)));
  EXPECT_TRUE(passes(with(21, -kInfinity)));
  const Verdict verdict = with(30, 1);
  EXPECT_EQ(measure(verdict, "exact").measured, 1);
  EXPECT_EQ(verdict.worst->index, (std::vector<int64_t>{0, 20, 30}));
}

TEST(SelfMetrics, ProbabilitiesAreZeroOffTheSupportAndLogitsAreFreeThere) {
  World world(15);
  const int64_t S = world.c.S, row = 20;
  int64_t off = 0;
  while (world.support[0][row * S + off] != 0) ++off;
  std::vector<double> logits = world.values("layers.0.attn.logits");
  logits[row * S + off] = kNaN;
  EXPECT_TRUE(passes(judge_with(world, "layers.0.attn.logits", logits)));
  std::vector<double> probs = world.values("layers.0.attn.probs");
  probs[row * S + off] = 1e-30;
  EXPECT_TRUE(fails(judge_with(world, "layers.0.attn.probs", probs)));
}

TEST(SelfMetrics, Float64SidesAreJudgedByFloat64Noise) {
  World world(16, DType::float64);
  for (const std::string& tap : kTaps) {
    EXPECT_TRUE(passes(compare_values(world.comparison(tap))))
        << show(compare_values(world.comparison(tap)));
    Comparison c = world.comparison(tap);
    world.reference.put(tap, world.truth(tap));  // a reference that is the oracle bit for bit
    EXPECT_TRUE(passes(compare_values(c))) << show(compare_values(c));
    std::vector<double> values = world.values(tap);
    for (double& value : values) value *= 1 + 1e-12;
    EXPECT_TRUE(fails(judge_with(world, tap, values))) << tap;
  }
}

TEST(SelfMetrics, AWrongShapeFails) {
  World world(17);
  const std::string tap = "layers.0.attn.out";
  world.judged.put(tap, HostTensor(DType::float32, {2, 33, 63}));
  const Verdict verdict = compare_values(world.comparison(tap));
  EXPECT_TRUE(fails(verdict));
  EXPECT_NE(verdict.note.find("[2,33,63]"), std::string::npos);
}

TEST(SelfMetrics, AGoldenIsAlsoJudgedByItsRelativeDistance) {
  World world(19);
  Comparison c = world.comparison("logits");
  c.golden_config = "tiny";
  EXPECT_TRUE(measure(compare_values(c), "relative").within());
  std::vector<double> values = world.values("logits");
  for (double& value : values) value *= 1 + 3e-6;
  world.corrupt("logits", values);
  c.judged = world.judged.find("logits");
  EXPECT_FALSE(measure(compare_values(c), "relative").within());
}

TEST(SelfMetrics, AllowancesForFewValuesFallToOne) {
  for (int64_t n = 1; n < 5000; n *= 2) {
    EXPECT_GE(harness::short_row_factor(n), harness::short_row_factor(2 * n));
    EXPECT_GE(harness::small_tensor_factor(n), harness::small_tensor_factor(2 * n));
    EXPECT_GE(harness::sketch_factor(n), harness::sketch_factor(2 * n));
    EXPECT_GT(harness::sketch_factor(n), 1);
  }
  EXPECT_EQ(harness::short_row_factor(1000), 1);
  EXPECT_EQ(harness::small_tensor_factor(1 << 20), 1);
}

}  // namespace
}  // namespace dsv32::suites
