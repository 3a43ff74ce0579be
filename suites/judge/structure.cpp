// What a failing tap looks like, in words: beyond a gain of the whole tensor.

#include "harness/judge/structure/structure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "harness/judge/compare.h"
#include "harness/judge/decisions/decisions.h"
#include "harness/judge/structure/match.h"
#include "suites/kit/world.h"

namespace dsv32::suites {
namespace {

using harness::compare_values;
using harness::Verdict;

using Values = std::vector<double>;

/// The structure of a tap whose values an edit made wrong.
std::string structure_of(const std::string& tap, const std::function<Values(Values)>& edit) {
  World world(31);
  world.corrupt(tap, edit(world.values(tap)));
  const Verdict verdict = compare_values(world.comparison(tap));
  EXPECT_TRUE(fails(verdict)) << show(verdict);
  return verdict.structure;
}

/// Each element by its index and value.
std::string each(const std::string& tap, const std::function<double(int64_t, double)>& change) {
  return structure_of(tap, [&](Values values) {
    for (int64_t i = 0; i < std::ssize(values); ++i) values[i] = change(i, values[i]);
    return values;
  });
}

/// Lane i of each row of `size` lanes becomes the one that `source` names.
std::string reordered(const std::string& tap, int64_t size,
                      const std::function<int64_t(int64_t)>& source) {
  return structure_of(tap, [&](const Values& old) {
    Values values = old;
    for (int64_t i = 0; i < std::ssize(values); ++i)
      values[i] = old[i / size * size + source(i % size)];
    return values;
  });
}

testing::AssertionResult names(const std::string& structure, const std::string& part) {
  if (structure.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << structure << "' does not name " << part;
}

std::string times(const std::string& tap, double gain) {
  return each(tap, [gain](int64_t, double x) { return gain * x; });
}

TEST(SelfStructureGain, IsNamedByTheConstantOfTheConfigThatItIs) {
  const std::string routed = "layers.1.moe.routed", weights = "layers.1.ix.weights";
  EXPECT_TRUE(names(times(routed, 2.5), "= routed_scaling_factor"));
  EXPECT_TRUE(names(times(routed, 0.4), "= 1 / routed_scaling_factor"));
  EXPECT_TRUE(names(times(weights, 4), "= sqrt(index_n_heads)"));
  EXPECT_TRUE(names(times(weights, std::sqrt(32)), "= sqrt(index_head_dim)"));
  EXPECT_TRUE(
      names(times("layers.0.attn.logits", std::sqrt(2)), "= sqrt(qk_head_dim / qk_nope_head_dim)"));
  EXPECT_FALSE(names(times(routed, 2.4), "="));
}

TEST(SelfStructureBlocks, HaveGainsOfTheirOwn) {
  const auto kv = [](int64_t i, double x) { return i / 64 < 16 ? 2 * x : x; };
  EXPECT_TRUE(names(each("grad.model.layers.0.self_attn.kv_a_proj_with_mqa.weight", kv),
                    "latent rows gain 2, the others are right"));
  const auto heads = [](int64_t i, double x) { return i / 16 % 4 == 2 ? 0.5 * x : x; };
  EXPECT_TRUE(names(each("layers.0.q_nope", heads), "head 2 gain 0.5, the others are right"));
}

TEST(SelfStructureGain, OfAGradientIsNoSizeOfTheConfig) {
  // 2 is the root of num_experts_per_tok, and the number of layers.
  const std::string twice = times("grad.model.layers.1.mlp.experts.0.down_proj.weight", 2);
  EXPECT_TRUE(names(twice, "gain 2"));
  EXPECT_FALSE(names(twice, "="));
}

TEST(SelfStructureLanes, WholeHeadsAreFoundInAnotherOrder) {
  constexpr int64_t kHeads = 4, kLanes = 16;
  const auto from = [](int64_t head, int64_t lane) { return head * kLanes + lane; };
  const std::string tap = "layers.0.q_nope";
  EXPECT_TRUE(names(reordered(tap, kHeads * kLanes,
                              [&](int64_t i) { return from(kHeads - 1 - i / kLanes, i % kLanes); }),
                    "heads in reverse order"));
  EXPECT_TRUE(names(reordered(tap, kHeads * kLanes,
                              [&](int64_t i) {
                                const int64_t head = i / kLanes;
                                return from(head < 2 ? 1 - head : head, i % kLanes);
                              }),
                    "2 of 4 heads are permuted"));
}

TEST(SelfStructureLanes, AreFoundInAnotherOrder) {
  const std::string tap = "layers.0.attn.out";
  EXPECT_TRUE(names(reordered(tap, 64, [](int64_t i) { return (i + 32) % 64; }), "halves swapped"));
  EXPECT_TRUE(names(reordered(tap, 64, [](int64_t i) { return i < 32 ? 2 * i : 2 * i - 63; }),
                    "de-interleaved"));
  EXPECT_TRUE(names(reordered(tap, 64, [](int64_t i) { return 63 - i; }), "lanes reversed"));
  EXPECT_TRUE(
      names(reordered(tap, 64, [](int64_t i) { return (5 * i + 3) % 64; }), "lanes are permuted"));
  const auto transpose = [](const Values& old) {
    Values values = old;
    for (int64_t i = 0; i < std::ssize(values); ++i)
      values[i] = old[i / 64 * 64 + i % 64 % 4 * 16 + i % 64 / 4];
    return values;
  };
  EXPECT_TRUE(names(structure_of("layers.0.q_nope", transpose), "last two axes transposed"));
}

TEST(SelfStructureValues, AreAFunctionOfTheRightOnes) {
  const std::string tap = "layers.1.moe.shared";
  EXPECT_TRUE(names(each(tap, [](int64_t, double x) { return std::max(x, 0.0); }), "its ReLU"));
  EXPECT_TRUE(
      names(each(tap, [](int64_t, double x) { return 1 / (1 + std::exp(-x)); }), "its sigmoid"));
  EXPECT_TRUE(names(each(tap, [](int64_t, double) { return 1.0; }), "every value is 1"));
  EXPECT_TRUE(names(each(tap, [](int64_t, double x) { return std::clamp(x, -0.5, 0.5); }),
                    "clipped at 0.5"));
  EXPECT_TRUE(names(each(tap, [](int64_t i, double x) { return x + 0.1 * (1 + i % 64 % 7); }),
                    "a bias missing or added"));
  EXPECT_TRUE(names(each(tap,
                         [](int64_t, double x) {
                           return bfloat16_to_float(float_to_bfloat16(static_cast<float>(x)));
                         }),
                    "bfloat16 number: the right one, rounded"));
}

/// A float16 number some steps of that type from x, to no side.
float some_steps_off(int64_t i, double x) {
  const auto rounded = [](double value) {
    return float16_to_float(float_to_float16(static_cast<float>(value)));
  };
  const int steps = 4 - static_cast<int>(i * 7 % 9);
  return rounded(x + steps * std::ldexp(1.0, std::ilogb(x) - 10));
}

TEST(SelfStructureValues, SumsOfA16BitTypeAreMoreThanOneRoundingOff) {
  const std::string tap = "layers.1.moe.shared", summed = "as sums made in float16 are";
  EXPECT_TRUE(names(each(tap, some_steps_off), summed));
  const std::string gained = each(tap, [](int64_t, double x) {
    return float16_to_float(float_to_float16(static_cast<float>(1.01 * x)));
  });
  EXPECT_TRUE(names(gained, "every value is a float16 number"));
  EXPECT_FALSE(names(gained, summed));
}

TEST(SelfStructureEachRow, HasANumberOrAnOrderOfItsOwn) {
  const std::string out = "layers.0.attn.out", weights = "layers.1.router.weights";
  EXPECT_TRUE(names(each(out, [](int64_t i, double x) { return x * (1 + i / 64 % 5 * 0.1); }),
                    "a number of its own (1 to 1.4)"));
  EXPECT_TRUE(names(each("layers.0.attn.probs",
                         [](int64_t i, double x) { return x / (1.25 + i / 33 % 2 * 2.75); }),
                    "the rows sum up to 0.25 to 0.8, not to 1"));
  const World world(31);
  const int64_t size = world.truth(weights).shape().back();
  const std::string sorted = structure_of(weights, [size](Values values) {
    for (auto row = values.begin(); row != values.end(); row += size)
      std::sort(row, row + size, std::greater<>());
    return values;
  });
  EXPECT_TRUE(names(sorted, "the right values in another order"));
}

/// Logits or scores [.., S, T] of which a rule masks some keys.
std::string masked(const std::string& tap, double value,
                   const std::function<bool(int64_t s, int64_t t)>& hides) {
  return each(tap, [&](int64_t i, double x) {
    return hides(i / 33 % 33, i % 33) && std::isfinite(x) ? value : x;
  });
}

TEST(SelfStructureMask, TellsWhichKeysAreMaskedThatCount) {
  const std::string logits = "layers.0.attn.logits", scores = "layers.0.ix.scores";
  const double lowest = std::numeric_limits<float>::lowest(), infinite = -INFINITY;
  EXPECT_TRUE(names(masked(logits, lowest, [](auto s, auto t) { return s == t; }),
                    "masked: the query's own key;"));
  EXPECT_TRUE(names(masked(scores, infinite, [](auto s, auto t) { return s == t && s > 9; }),
                    "the query's own key, in queries from 10 on"));
  EXPECT_TRUE(names(masked(scores, infinite, [](auto s, auto t) { return s - t >= 16; }),
                    "keys 16 tokens and more behind the query"));
  EXPECT_TRUE(names(masked(scores, infinite, [](auto s, auto t) { return s - t <= 2; }),
                    "keys fewer than 3 tokens behind the query"));
  EXPECT_TRUE(names(masked(scores, infinite, [](auto, auto t) { return t == 9 || t == 12; }),
                    "masked: keys 9, 12;"));
  const std::string odd = masked(scores, infinite, [](auto s, auto t) { return (s + t) % 2 == 0; });
  EXPECT_TRUE(names(odd, "keys that count are masked;"));
}

TEST(SelfStructureMask, TellsWhichKeysAreSeenThatDoNotCount) {
  const auto future = [](int64_t i, double x) { return i % 33 == i / 33 % 33 + 1 ? 0.5 : x; };
  EXPECT_TRUE(names(each("layers.0.attn.probs", future), "rows attend to future keys"));
  EXPECT_TRUE(names(each("layers.0.ix.scores", future), "rows score future keys"));
}

TEST(SelfStructureCommon, RowsThatFailAreToldByWhatTheyShare) {
  const World world(31);
  const int32_t id = static_cast<int32_t>(world.batch.input_ids[20]);
  EXPECT_TRUE(names(each("layers.0.attn.out",
                         [&](int64_t i, double x) {
                           return world.batch.input_ids[i / 64] == id ? x + 0.1 * (i % 3) : x;
                         }),
                    "those of"));
  EXPECT_TRUE(
      names(each("layers.0.attn.out",
                 [](int64_t i, double x) { return i / 64 % 33 % 7 == 3 ? x + 0.1 * (i % 3) : x; }),
            "counted modulo 7, 3 and no others"));
}

std::string match_of(const std::string& tap, const std::function<Values(const World&)>& edit) {
  World world(31);
  world.corrupt(tap, edit(world));
  return harness::describe_match(world.comparison(tap), world.oracle, world.judged);
}

/// What is said of a sum over three ranks, each of which has some elements, whose summands an edit
/// made wrong.
std::string of_summands(const std::string& tap,
                        const std::function<void(std::vector<Values>&)>& edit) {
  World world(31);
  const Values right = world.values(tap);
  std::vector<Values> parts(3, Values(right.size(), 0));
  for (size_t i = 0; i < right.size(); ++i) {
    parts[i % 3][i] = 3 * right[i];  // more than there is, so that two ranks take from it again
    parts[(i + 1) % 3][i] = -right[i];
    parts[(i + 2) % 3][i] = -right[i];
  }
  edit(parts);
  std::vector<harness::RankSummand> summands;
  Values sum(right.size(), 0);
  const Shape shape = world.comparison(tap).yardstick.oracle->shape();
  for (int64_t rank = 0; rank < 3; ++rank) {
    const Values& part = parts[static_cast<size_t>(rank)];
    for (size_t i = 0; i < part.size(); ++i) sum[i] += part[i];
    summands.push_back({rank, part.empty()
                                  ? HostTensor()
                                  : HostTensor::from_doubles(DType::float32, shape, part)});
  }
  world.corrupt(tap, sum);
  harness::Comparison comparison = world.comparison(tap);
  comparison.summands = &summands;
  return compare_values(comparison).structure;
}

void scale(Values& part, double factor) {
  for (double& value : part) value *= factor;
}

TEST(SelfStructureSummands, TheWrongOneIsNamedByItsRank) {
  const std::string tap = "layers.1.moe.routed";
  using Parts = std::vector<Values>;
  const auto told = [&](const std::function<void(Parts&)>& edit) { return of_summands(tap, edit); };
  EXPECT_TRUE(names(told([](Parts& p) { scale(p[1], 2); }),
                    "the summand of rank 1 is 2 x the right one: it enters twice"));
  EXPECT_TRUE(names(told([](Parts& p) { scale(p[2], 0.25); }),
                    "the summand of rank 2 is 0.25 x the right one"));
  EXPECT_TRUE(names(told([](Parts& p) { scale(p[0], -1); }),
                    "the summand of rank 0 is -1 x the right one"));
  EXPECT_TRUE(names(told([](Parts& p) { scale(p[2], 0); }), "of rank 2 is exactly zero"));
  EXPECT_TRUE(names(told([](Parts& p) { p[2].clear(); }), "rank 2 handed in no summand"));
  EXPECT_TRUE(names(told([](Parts& p) { p[2] = p[0]; }), "ranks 0 and 2 hand in the same summand"));
  EXPECT_TRUE(names(told([](Parts& p) { p[1][5] = NAN; }), "of rank 1 holds NaN or infinite"));
}

TEST(SelfStructureSummands, AFaultOfAllRanksNamesNone) {
  const std::string all = of_summands("layers.1.moe.routed", [](std::vector<Values>& parts) {
    for (Values& part : parts) scale(part, 2);
  });
  EXPECT_TRUE(names(all, "gain 2"));
  EXPECT_EQ(all.find("rank"), std::string::npos) << all;
}

TEST(SelfStructureMatch, TheTapIsAnotherOne) {
  EXPECT_EQ(match_of("layers.1.attn.out",
                     [](const World& w) { return w.truth("layers.1.ffn_norm").to_doubles(); }),
            "its values are those of layers.1.ffn_norm");
  EXPECT_EQ(match_of("layers.1.attn.out",
                     [](const World& w) { return w.truth("layers.0.attn.out").to_doubles(); }),
            "its values are those of layers.0.attn.out");
  EXPECT_EQ(match_of("layers.1.attn.out",
                     [](const World& w) {
                       const Values old = w.truth("layers.1.attn.out").to_doubles();
                       Values values = old;
                       for (int64_t i = 64; i < std::ssize(values); ++i) values[i] = old[i - 64];
                       return values;
                     }),
            "each row is that of the token before");
  EXPECT_EQ(match_of("layers.1.mlp.out",
                     [](const World& w) {
                       Values values = w.values("layers.1.moe.routed");
                       const Values shared = w.values("layers.1.moe.shared");
                       for (size_t i = 0; i < values.size(); ++i) values[i] += 2 * shared[i];
                       return values;
                     }),
            "it is 1 x routed + 2 x shared");
  EXPECT_EQ(match_of("layers.1.attn.out",
                     [](const World& w) {
                       Values values = w.values("layers.1.attn.out");
                       for (double& x : values) x = std::sin(9 * x);
                       return values;
                     }),
            "");
}

/// The structure of wrong sets in layer 0.
std::string sets(const std::function<int64_t(int64_t s, int64_t slot, int64_t old)>& pick) {
  World world(31);
  const std::string tap = "layers.0.topk";
  Values values = world.values(tap);
  const int64_t k = world.c.config.index_topk;
  for (int64_t i = 0; i < std::ssize(values); ++i)
    values[i] =
        static_cast<double>(pick(i / k % world.c.S, i % k, static_cast<int64_t>(values[i])));
  world.corrupt(tap, values);
  const Verdict verdict =
      harness::judge_topk(world.comparison(tap), world.judged.find("layers.0.ix.scores"));
  EXPECT_TRUE(fails(verdict)) << show(verdict);
  return verdict.structure;
}

TEST(SelfStructureSelection, WrongSetsAreSaidInWords) {
  EXPECT_TRUE(names(
      sets([](int64_t s, int64_t slot, int64_t old) { return slot == 0 && s < 32 ? s + 1 : old; }),
      "rows select future keys"));
  EXPECT_TRUE(names(
      sets([](int64_t s, int64_t slot, int64_t old) { return s >= 16 && slot == 0 ? -1 : old; }),
      "rows select too few keys"));
  EXPECT_TRUE(
      names(sets([](int64_t s, int64_t slot, int64_t old) { return s >= 16 ? s - slot : old; }),
            "do not select the best of their own scores: the selector is wrong"));
}

}  // namespace
}  // namespace dsv32::suites
