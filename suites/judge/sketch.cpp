// Sketched goldens and the structure of a failure.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "suites/kit/world.h"

namespace dsv32::suites {
namespace {

using harness::compare_sketch;
using harness::compare_values;
using harness::Comparison;
using harness::Verdict;

constexpr int kWorlds = 30;

const std::vector<std::string> kTaps = {"layers.0.attn.out",
                                        "layers.0.q_nope",
                                        "layers.1.ix.k",
                                        "layers.1.ix.scores",
                                        "layers.0.attn.logits",
                                        "layers.0.attn.probs",
                                        "layers.1.router.weights",
                                        "layers.1.router.logits",
                                        "logits",
                                        "grad.model.norm.weight",
                                        "grad.lm_head.weight",
                                        "grad.model.layers.1.mlp.experts.3.up_proj.weight"};

Verdict judge_sketch(const World& world, const std::string& tap,
                     const std::vector<double>& values) {
  const HostTensor changed =
      HostTensor::from_doubles(world.dtype, world.truth(tap).shape(), values);
  Comparison c = world.comparison(tap);
  c.judged = nullptr;
  c.golden_config = "tiny";
  return compare_sketch(c, make_sketch(world, tap, changed));
}

TEST(SelfSketch, CleanNoiseNeverAlarms) {
  for (uint64_t seed = 1; seed <= kWorlds; ++seed) {
    const World world(seed);
    for (const std::string& tap : kTaps) {
      const Verdict verdict = judge_sketch(world, tap, world.values(tap));
      EXPECT_TRUE(passes(verdict)) << "seed " << seed << ": " << show(verdict);
    }
  }
}

TEST(SelfSketch, AGainOfOnePerMilleIsCaughtAndNamed) {
  const World world(1);
  for (const std::string& tap : kTaps) {
    std::vector<double> values = world.values(tap);
    for (double& value : values) value *= 1.001;
    const Verdict verdict = judge_sketch(world, tap, values);
    EXPECT_TRUE(fails(verdict)) << show(verdict);
    EXPECT_FALSE(measure(verdict, "row ratio").within()) << show(verdict);
    EXPECT_FALSE(measure(verdict, "tensor ratio").within()) << show(verdict);
    EXPECT_FALSE(measure(verdict, "relative").within()) << show(verdict);
    EXPECT_NE(verdict.structure.find("gain 1.001"), std::string::npos) << show(verdict);
  }
}

TEST(SelfSketch, NormsAloneCatchAScaledRow) {
  const World world(2);
  const std::string tap = "logits";
  golden::SketchedTap sketch = make_sketch(world, tap, *world.judged.find(tap));
  sketch.row_norms[3] *= 1.01F;
  EXPECT_FALSE(measure(compare_sketch(world.comparison(tap), sketch), "row norm").within());
  sketch.row_norms[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(measure(compare_sketch(world.comparison(tap), sketch), "row norm").within());
}

TEST(SelfSketch, SwappedRowsAreCaught) {
  const World world(3);
  for (const std::string& tap : {std::string("logits"), std::string("layers.1.ix.k"),
                                 std::string("layers.1.router.logits")}) {
    std::vector<double> values = world.values(tap);
    const int64_t size = std::ssize(values) / (world.c.B * world.c.S);
    for (int64_t i = 0; i < size; ++i) std::swap(values[4 * size + i], values[5 * size + i]);
    EXPECT_TRUE(fails(judge_sketch(world, tap, values))) << tap;
  }
}

TEST(SelfSketch, OneWrongRowIsCaughtAndNamed) {
  const World world(4);
  for (const std::string& tap :
       {std::string("layers.0.attn.out"), std::string("layers.0.q_nope")}) {
    std::vector<double> values = world.values(tap);
    const int64_t size = std::ssize(values) / (world.c.B * world.c.S);
    for (int64_t i = 0; i < size; ++i)
      values[(world.c.S + 12) * size + i] *= 1 + 1e-4 * (i % 2 == 0 ? 1 : -1);
    const Verdict verdict = judge_sketch(world, tap, values);
    EXPECT_TRUE(fails(verdict)) << show(verdict);
    EXPECT_NE(verdict.structure.find("one row (b 1, s 12)"), std::string::npos) << show(verdict);
    EXPECT_EQ(verdict.worst->index, (std::vector<int64_t>{1, 12}));
  }
}

TEST(SelfSketch, OneElementOfAChosenRowIsCaughtByTheTail) {
  const World world(5);
  const std::string tap = "logits";
  golden::SketchedTap sketch = make_sketch(world, tap, *world.judged.find(tap));
  const int64_t element = sketch.row_index[0] * world.c.config.vocab_size + 7;
  sketch.rows[7] +=
      static_cast<float>(128 * harness::element_noise(world.comparison(tap), element));
  const Verdict verdict = compare_sketch(world.comparison(tap), sketch);
  EXPECT_FALSE(measure(verdict, "max tail").within()) << show(verdict);
}

TEST(SelfSketch, NanFails) {
  const World world(6);
  for (const std::string& tap : kTaps) {
    const golden::SketchedTap clean = make_sketch(world, tap, *world.judged.find(tap));
    for (auto part : {&golden::SketchedTap::row_norms, &golden::SketchedTap::projections,
                      &golden::SketchedTap::rows}) {
      golden::SketchedTap sketch = clean;
      (sketch.*part)[0] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_TRUE(fails(compare_sketch(world.comparison(tap), sketch))) << tap;
    }
  }
}

TEST(SelfSketch, PaddedRowsAreNeverJudged) {
  const World world(7);
  golden::SketchedTap sketch = make_sketch(world, "logits", *world.judged.find("logits"));
  sketch.row_norms[world.c.S + world.c.pad - 1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(passes(compare_sketch(world.comparison("logits"), sketch)));
  sketch.row_norms[world.c.S + world.c.pad] *= 2;
  EXPECT_TRUE(fails(compare_sketch(world.comparison("logits"), sketch)));
}

TEST(SelfSketch, ZeroOracleDemandsExactZero) {
  World world(8);
  const std::string tap = "grad.model.layers.1.mlp.experts.5.up_proj.weight";
  const HostTensor zero(DType::float64, world.truth(tap).shape());
  world.oracle.put(tap, zero);
  golden::SketchedTap sketch = make_sketch(world, tap, zero);
  EXPECT_TRUE(passes(compare_sketch(world.comparison(tap), sketch)));
  sketch.rows[4] = 1e-30F;
  EXPECT_TRUE(fails(compare_sketch(world.comparison(tap), sketch)));
  sketch = make_sketch(world, tap, zero);
  sketch.row_norms[0] = 1e-30F;
  EXPECT_TRUE(fails(compare_sketch(world.comparison(tap), sketch)));
}

TEST(SelfSketch, AnotherShapeFails) {
  const World world(9);
  golden::SketchedTap sketch = make_sketch(world, "logits", *world.judged.find("logits"));
  sketch.projections.pop_back();
  EXPECT_TRUE(fails(compare_sketch(world.comparison("logits"), sketch)));
  sketch = make_sketch(world, "logits", *world.judged.find("logits"));
  sketch.shape[2] -= 1;
  EXPECT_TRUE(fails(compare_sketch(world.comparison("logits"), sketch)));
}

// --- structure -----------------------------------------------------------------------------------

// Changes judged elements of a tap by their index and old value, and tells the structure of the
// failure.
template <typename Change>
std::string structure_of(const std::string& tap, Change change) {
  World world(21);
  std::vector<double> values = world.values(tap);
  for (int64_t i = 0; i < std::ssize(values); ++i) values[i] = change(i, values[i]);
  world.corrupt(tap, values);
  const Verdict verdict = compare_values(world.comparison(tap));
  EXPECT_TRUE(fails(verdict)) << show(verdict);
  return verdict.structure;
}

testing::AssertionResult names(const std::string& structure, const std::string& part) {
  if (structure.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << structure << "' does not name " << part;
}

TEST(SelfStructure, NamesAGain) {
  EXPECT_TRUE(names(structure_of("layers.1.moe.routed", [](int64_t, double x) { return 2.5 * x; }),
                    "gain 2.5 "));
  EXPECT_TRUE(names(structure_of("layers.1.moe.routed", [](int64_t, double x) { return 0.4 * x; }),
                    "gain 0.4 "));
  EXPECT_TRUE(
      names(structure_of("layers.1.attn.logits", [](int64_t, double x) { return x * 1.87385; }),
            "gain 1.87385 "));
}

TEST(SelfStructure, NamesAShift) {
  EXPECT_TRUE(
      names(structure_of("logits", [](int64_t, double x) { return x + 0.25; }), "shift 0.25 "));
}

TEST(SelfStructure, NamesOneHead) {
  const auto change = [](int64_t i, double x) { return i / 16 % 4 == 3 ? -x : x; };
  EXPECT_TRUE(names(structure_of("layers.0.q_nope", change), "head 3 holds"));
}

TEST(SelfStructure, NamesOneBatchRow) {
  const auto change = [](int64_t i, double x) { return i < 33 * 64 ? x : x * (1 + 0.1 * (i % 3)); };
  EXPECT_TRUE(names(structure_of("layers.0.attn.out", change), "batch row 1 holds"));
}

TEST(SelfStructure, NamesTheTailRows) {
  const auto change = [](int64_t i, double x) { return i / 64 % 33 >= 24 ? -x : x; };
  EXPECT_TRUE(names(structure_of("layers.0.attn.out", change), "rows from s = 2"));
}

TEST(SelfStructure, NamesTheExpertOfAGradient) {
  const std::string tap = "grad.model.layers.1.mlp.experts.3.up_proj.weight";
  EXPECT_TRUE(names(structure_of(tap, [](int64_t, double x) { return -x; }), "expert 3"));
}

TEST(SelfStructure, NamesNanWithItsPlace) {
  const auto change = [](int64_t i, double x) {
    return i == 64 * 7 + 2 ? std::numeric_limits<double>::quiet_NaN() : x;
  };
  EXPECT_TRUE(names(structure_of("layers.0.attn.out", change),
                    "1 NaN or infinite values, the first at [0,7,2]"));
}

TEST(SelfStructure, NamesNoMoreThanTheRowsInPlainNoise) {
  Noise noise(1, "plain");
  const std::string structure = structure_of(
      "layers.0.attn.out", [&](int64_t, double x) { return x + 0.1 * noise.normal(); });
  EXPECT_EQ(structure, "every row fails");
}

}  // namespace
}  // namespace dsv32::suites
