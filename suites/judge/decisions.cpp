// Top-k and expert decisions on crafted rows.
#include "harness/judge/decisions/decisions.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "harness/judge/limits.h"
#include "suites/kit/world.h"

namespace dsv32::suites {
namespace {

using harness::Comparison;
using harness::Mode;
using harness::Trust;
using harness::Verdict;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// One query row (the last of a batch of one) over `scores.size()` keys; top-k 4.
struct TopkRow {
  std::vector<double> scores;      // of the oracle
  std::vector<double> own_scores;  // of the judged side; empty: not stored
  std::vector<double> picks;  // of the last query; earlier queries pick all their keys or the best
  int64_t index_topk = 4;
  std::vector<int64_t> mask = {};
  bool dense = false;
};

Verdict judge_row(const TopkRow& row, Mode mode = Mode::staged) {
  const int64_t S = std::ssize(row.scores), k = row.index_topk;
  ModelConfig config;
  config.index_topk = k;
  config.use_sparse_attention = !row.dense;
  Batch batch;
  batch.B = 1;
  batch.S = S;
  // Only the last query is judged: the earlier ones are no queries of this batch, but keys they
  // stay.
  batch.attention_mask = row.mask.empty() ? std::vector<int64_t>(S, 1) : row.mask;
  std::vector<double> scores(S * S, -kInfinity), own(S * S, -kInfinity), picks(S * k, -1);
  for (int64_t s = 0; s < S; ++s)
    for (int64_t t = 0, taken = 0; t <= s; ++t) {
      if (batch.attention_mask[t] == 0) continue;
      const bool last = s == S - 1;
      scores[s * S + t] = last ? row.scores[t] : -static_cast<double>(t);
      own[s * S + t] = last && !row.own_scores.empty() ? row.own_scores[t] : scores[s * S + t];
      if (!last && taken < k) picks[s * k + taken++] = t;
    }
  for (size_t i = 0; i < row.picks.size(); ++i) picks[(S - 1) * k + i] = row.picks[i];
  const HostTensor oracle = HostTensor::from_doubles(DType::float64, {1, S, S}, scores);
  const HostTensor judged = HostTensor::from_doubles(DType::int32, {1, S, k}, picks);
  const HostTensor stored = HostTensor::from_doubles(DType::float32, {1, S, S}, own);
  Comparison c;
  c.config = &config;
  c.batch = &batch;
  c.tap = *parse_tap("layers.0.topk");
  c.mode = mode;
  c.judged = &judged;
  c.yardstick.oracle = &oracle;
  return harness::judge_topk(c, row.own_scores.empty() ? nullptr : &stored);
}

testing::AssertionResult accepted(const Verdict& verdict) {
  return (passes(verdict) ? testing::AssertionSuccess() : testing::AssertionFailure())
         << show(verdict);
}
testing::AssertionResult refused(const Verdict& verdict, const std::string& metric) {
  const bool by_it = fails(verdict) && !measure(verdict, metric).within();
  return (by_it ? testing::AssertionSuccess() : testing::AssertionFailure()) << show(verdict);
}

const std::vector<double> kScores = {0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4};  // best four: 0 2 4 6

TEST(SelfTopk, AcceptsTheSetInAnyOrder) {
  std::vector<double> picks = {0, 2, 4, 6};
  do {
    EXPECT_TRUE(accepted(judge_row({.scores = kScores, .own_scores = kScores, .picks = picks})));
  } while (std::next_permutation(picks.begin(), picks.end()));
}

TEST(SelfTopk, RefusesOneWrongIndex) {
  for (const double wrong : {1.0, 3.0, 5.0, 7.0}) {
    const TopkRow row{.scores = kScores, .own_scores = kScores, .picks = {0, 2, 4, wrong}};
    EXPECT_TRUE(refused(judge_row(row), "own scores"));
    EXPECT_TRUE(refused(judge_row(row), "band"));
    EXPECT_TRUE(refused(judge_row({.scores = kScores, .own_scores = {}, .picks = {0, 2, 4, wrong}}),
                        "band"));
  }
}

TEST(SelfTopk, RefusesInvalidPicks) {
  const auto with = [](std::vector<double> picks) {
    return judge_row({.scores = kScores, .own_scores = kScores, .picks = std::move(picks)});
  };
  EXPECT_TRUE(refused(with({0, 2, 4, 4}), "exact"));   // twice
  EXPECT_TRUE(refused(with({0, 2, 4, 8}), "exact"));   // beyond the last key
  EXPECT_TRUE(refused(with({0, 2, 4, -2}), "exact"));  // below the first
  EXPECT_TRUE(refused(with({0, 2, 4, 1 << 30}), "exact"));
  EXPECT_TRUE(refused(with({0, 2, 4}), "exact"));  // one too few
  EXPECT_TRUE(refused(with({}), "exact"));
}

TEST(SelfTopk, RefusesKeysThatAreNotVisible) {
  const std::vector<int64_t> mask = {0, 0, 1, 1, 1, 1, 1, 1};
  EXPECT_TRUE(accepted(
      judge_row({.scores = kScores, .own_scores = {}, .picks = {2, 4, 6, 7}, .mask = mask})));
  EXPECT_TRUE(
      refused(judge_row({.scores = kScores, .own_scores = {}, .picks = {0, 2, 4, 6}, .mask = mask}),
              "exact"));
}

TEST(SelfTopk, ExactTiesAreFree) {
  const std::vector<double> tied = {0.9, 0.5, 0.8, 0.5,
                                    0.7, 0.5, 0.1, 0.5};  // 1 3 5 7 tie at the cut
  for (const double pick : {1.0, 3.0, 5.0, 7.0})
    EXPECT_TRUE(
        accepted(judge_row({.scores = tied, .own_scores = tied, .picks = {0, 2, 4, pick}})));
  EXPECT_TRUE(refused(judge_row({.scores = tied, .own_scores = tied, .picks = {0, 2, 4, 6}}),
                      "own scores"));
  EXPECT_TRUE(
      refused(judge_row({.scores = tied, .own_scores = tied, .picks = {0, 2, 1, 3}}), "band"));
}

TEST(SelfTopk, AllEqualRowsAllowEverySet) {
  const std::vector<double> equal(8, 0.25);
  EXPECT_TRUE(accepted(judge_row({.scores = equal, .own_scores = equal, .picks = {7, 1, 3, 5}})));
  EXPECT_TRUE(
      refused(judge_row({.scores = equal, .own_scores = equal, .picks = {7, 1, 3, 3}}), "exact"));
}

TEST(SelfTopk, MinusZeroEqualsZero) {
  const std::vector<double> zeros = {0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0};
  EXPECT_TRUE(accepted(judge_row({.scores = zeros, .own_scores = zeros, .picks = {1, 3, 5, 7}})));
  EXPECT_TRUE(accepted(judge_row({.scores = zeros, .own_scores = zeros, .picks = {0, 2, 4, 6}})));
}

TEST(SelfTopk, ShortRowsAreDetermined) {
  for (int64_t keys = 1; keys <= 4; ++keys) {
    std::vector<double> all;
    for (int64_t t = 0; t < keys; ++t) all.push_back(static_cast<double>(keys - 1 - t));
    const std::vector<double> scores(kScores.begin(), kScores.begin() + keys);
    EXPECT_TRUE(accepted(judge_row({.scores = scores, .own_scores = scores, .picks = all})));
    all[0] = -1;
    EXPECT_TRUE(
        refused(judge_row({.scores = scores, .own_scores = scores, .picks = all}), "exact"));
  }
}

TEST(SelfTopk, OneKeyMoreThanTopkLeavesOneOut) {
  const std::vector<double> five = {0.9, 0.1, 0.8, 0.2, 0.7};
  EXPECT_TRUE(accepted(judge_row({.scores = five, .own_scores = five, .picks = {0, 2, 3, 4}})));
  EXPECT_TRUE(
      refused(judge_row({.scores = five, .own_scores = five, .picks = {0, 1, 2, 4}}), "band"));
}

TEST(SelfTopk, FlipsInsideTheBandAreLegitimateAndOutsideNot) {
  const double ulp = 0x1p-24;  // of float32 at 0.6: the noise of a row without reference and probe
  const double band = harness::limit_of("decision.band");
  const auto with = [&](double gap) {
    std::vector<double> scores = kScores;
    scores[7] = 0.6 - gap;
    return judge_row({.scores = scores, .own_scores = {}, .picks = {0, 2, 4, 7}}, Mode::forced);
  };
  EXPECT_TRUE(accepted(with(0)));
  EXPECT_TRUE(accepted(with(band * ulp)));
  EXPECT_TRUE(refused(with(8 * band * ulp), "band"));
  EXPECT_GT(measure(with(band * ulp), "band").measured, 0);
}

TEST(SelfTopk, OwnScoresDecideEvenInsideTheBand) {
  std::vector<double> scores = kScores;
  scores[7] = 0.6 - 0x1p-24;
  EXPECT_TRUE(accepted(judge_row({.scores = scores, .own_scores = {}, .picks = {0, 2, 4, 7}})));
  EXPECT_TRUE(refused(judge_row({.scores = scores, .own_scores = scores, .picks = {0, 2, 4, 7}}),
                      "own scores"));
}

TEST(SelfTopk, NanInOwnScoresIsRefused) {
  std::vector<double> own = kScores;
  own[1] = kNaN;
  EXPECT_TRUE(refused(judge_row({.scores = kScores, .own_scores = own, .picks = {0, 2, 4, 6}}),
                      "own scores"));
}

TEST(SelfTopk, DenseModeIsSkippedWithAReason) {
  const Verdict verdict =
      judge_row({.scores = kScores, .own_scores = {}, .picks = {}, .dense = true});
  EXPECT_EQ(verdict.trust, Trust::skipped);
  EXPECT_FALSE(verdict.note.empty());
}

TEST(SelfTopk, NoiseOfTheReferenceWidensTheBand) {
  int64_t flipped = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const World rough(seed, DType::bfloat16);
    Comparison c = rough.comparison("layers.1.topk");
    if (measure(harness::judge_topk(c, nullptr), "band").measured == 0) continue;
    ++flipped;
    EXPECT_TRUE(accepted(harness::judge_topk(c, rough.judged.find("layers.1.ix.scores"))));
    c.dtype = DType::float32;  // a float32 side cannot have made these sets
    c.yardstick.reference = nullptr;
    EXPECT_TRUE(refused(harness::judge_topk(c, nullptr), "band"));
  }
  EXPECT_GT(flipped, 2);
}

TEST(SelfTopk, CountsFlips) {
  World world(2);
  const std::string tap = "layers.0.topk";
  const HostTensor& own = *world.judged.find(tap);
  EXPECT_EQ(harness::count_flips(own, own, world.batch).differing_rows, 0);
  std::vector<double> values = own.to_doubles();
  std::swap(values[20 * 8], values[20 * 8 + 1]);
  double other = 0;  // a key that row 21 did not pick
  while (std::find(values.begin() + 21 * 8, values.begin() + 22 * 8, other) !=
         values.begin() + 22 * 8)
    ++other;
  values[21 * 8] = other;
  const harness::FlipCount flips = harness::count_flips(
      HostTensor::from_doubles(DType::int32, own.shape(), values), own, world.batch);
  EXPECT_EQ(flips.rows, 2 * 33 - 5);
  EXPECT_EQ(flips.differing_rows, 1);
  EXPECT_EQ(flips.differing_elements, 1);
}

// --- experts -------------------------------------------------------------------------------------

// One token, 8 experts in 4 groups of two; 2 groups and 3 experts are kept.
struct RouterRow {
  std::vector<double> logits;      // of the oracle
  std::vector<double> own_logits;  // empty: not stored
  std::vector<double> experts;
  std::vector<double> bias = std::vector<double>(8, 0.0);
};

Verdict judge_router(const RouterRow& row, Mode mode = Mode::staged) {
  ModelConfig config;
  config.n_routed_experts = 8;
  config.n_group = 4;
  config.topk_group = 2;
  config.num_experts_per_tok = 3;
  Batch batch;
  batch.B = batch.S = 1;
  batch.attention_mask = {1};
  const HostTensor oracle = HostTensor::from_doubles(DType::float64, {1, 1, 8}, row.logits);
  const HostTensor judged =
      HostTensor::from_doubles(DType::int32, {1, 1, std::ssize(row.experts)}, row.experts);
  const HostTensor bias = HostTensor::from_doubles(DType::float32, {8}, row.bias);
  const bool stored = !row.own_logits.empty();
  const HostTensor own =
      stored ? HostTensor::from_doubles(DType::float32, {1, 1, 8}, row.own_logits) : HostTensor();
  Comparison c;
  c.config = &config;
  c.batch = &batch;
  c.tap = *parse_tap("layers.0.router.experts");
  c.mode = mode;
  c.judged = &judged;
  c.yardstick.oracle = &oracle;
  return harness::judge_experts(c, bias, stored ? &own : nullptr);
}

// Groups {0,1} and {4,5} have the best sums; the best three inside are 0, 1, 4. Expert 2 is better
// than 4, its group is not.
const std::vector<double> kLogits = {2.0, 1.5, 1.4, -3.0, 1.3, 0.9, 0.2, 0.1};

TEST(SelfExperts, AcceptsTheChoiceInAnyOrder) {
  std::vector<double> experts = {0, 1, 4};
  do {
    EXPECT_TRUE(
        accepted(judge_router({.logits = kLogits, .own_logits = kLogits, .experts = experts})));
  } while (std::next_permutation(experts.begin(), experts.end()));
}

TEST(SelfExperts, RefusesAChoiceThatIgnoresTheGroups) {
  const RouterRow row{.logits = kLogits, .own_logits = kLogits, .experts = {0, 1, 2}};
  EXPECT_TRUE(refused(judge_router(row), "band"));
  EXPECT_TRUE(refused(judge_router(row), "own logits"));
}

TEST(SelfExperts, RefusesAWrongExpertInsideTheRightGroups) {
  EXPECT_TRUE(
      refused(judge_router({.logits = kLogits, .own_logits = {}, .experts = {0, 1, 5}}), "band"));
}

TEST(SelfExperts, RefusesMoreGroupsThanAreKept) {
  EXPECT_TRUE(
      refused(judge_router({.logits = kLogits, .own_logits = {}, .experts = {0, 2, 4}}), "band"));
}

TEST(SelfExperts, RefusesInvalidPicks) {
  EXPECT_TRUE(
      refused(judge_router({.logits = kLogits, .own_logits = {}, .experts = {0, 1, 1}}), "exact"));
  EXPECT_TRUE(
      refused(judge_router({.logits = kLogits, .own_logits = {}, .experts = {0, 1, 8}}), "exact"));
  EXPECT_TRUE(
      refused(judge_router({.logits = kLogits, .own_logits = {}, .experts = {0, 1, -1}}), "exact"));
  EXPECT_TRUE(
      refused(judge_router({.logits = kLogits, .own_logits = {}, .experts = {0, 1}}), "exact"));
}

TEST(SelfExperts, TheBiasTakesPartInTheChoice) {
  RouterRow row{.logits = kLogits, .own_logits = {}, .experts = {0, 1, 5}};
  row.bias[5] = 0.5;
  row.bias[4] = -0.1;
  row.experts = {0, 1, 5};
  EXPECT_TRUE(accepted(judge_router(row)));
  row.experts = {0, 1, 4};
  EXPECT_TRUE(refused(judge_router(row), "band"));
}

TEST(SelfExperts, NegativeBiasedScoresKeepTheirOrder) {
  RouterRow row{.logits = kLogits, .own_logits = kLogits, .experts = {0, 1, 4}};
  row.bias.assign(8, -2.0);
  EXPECT_TRUE(accepted(judge_router(row)));
  row.experts = {0, 1, 6};
  EXPECT_TRUE(refused(judge_router(row), "band"));
}

TEST(SelfExperts, TiesOfExpertsAndOfGroupsAreFree) {
  std::vector<double> logits = kLogits;
  logits[5] = logits[4];  // experts 4 and 5 tie
  EXPECT_TRUE(
      accepted(judge_router({.logits = logits, .own_logits = logits, .experts = {0, 1, 5}})));
  logits = {2.0, 1.5, 1.4, 0.3, 1.4, 0.3, -3, -3};  // groups {2,3} and {4,5} tie
  EXPECT_TRUE(
      accepted(judge_router({.logits = logits, .own_logits = logits, .experts = {0, 1, 2}})));
  EXPECT_TRUE(
      accepted(judge_router({.logits = logits, .own_logits = logits, .experts = {0, 1, 4}})));
  EXPECT_TRUE(refused(judge_router({.logits = logits, .own_logits = logits, .experts = {0, 1, 6}}),
                      "band"));
}

TEST(SelfExperts, FlipsInsideTheBandAreLegitimateAndOutsideNot) {
  const double noise = 0x1p-23;  // of float32 logits near 1.3
  const auto with = [&](double gap) {
    std::vector<double> logits = kLogits;
    logits[5] = logits[4] - gap;
    return judge_router({.logits = logits, .own_logits = {}, .experts = {0, 1, 5}}, Mode::forced);
  };
  const double band = harness::limit_of("decision.band");
  EXPECT_TRUE(accepted(with(band * noise)));
  EXPECT_TRUE(refused(with(64 * band * noise), "band"));
}

TEST(SelfExperts, NanInOwnLogitsIsRefused) {
  std::vector<double> own = kLogits;
  own[0] = kNaN;
  EXPECT_TRUE(refused(judge_router({.logits = kLogits, .own_logits = own, .experts = {0, 1, 4}}),
                      "own logits"));
}

TEST(SelfExperts, ExpertsWithoutATokenAreListed) {
  const Verdict verdict = judge_router({.logits = kLogits, .own_logits = {}, .experts = {0, 1, 4}});
  EXPECT_NE(verdict.note.find("experts without a token: 2, 3, 5, 6, 7"), std::string::npos)
      << verdict.note;
}

TEST(SelfExperts, CleanNoiseNeverAlarms) {
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      const World world(seed, dtype);
      const Verdict experts = harness::judge_experts(world.comparison("layers.1.router.experts"),
                                                     world.biases.begin()->second,
                                                     world.judged.find("layers.1.router.logits"));
      EXPECT_TRUE(accepted(experts)) << seed;
      for (const int64_t layer : {0, 1}) {
        const Verdict topk = harness::judge_topk(world.comparison(layer_tap(layer, "topk")),
                                                 world.judged.find(layer_tap(layer, "ix.scores")));
        EXPECT_TRUE(accepted(topk)) << seed;
      }
    }
}

TEST(SelfExperts, ShiftedIdsAreRefused) {
  World world(3);
  const std::string tap = "layers.1.router.experts";
  std::vector<double> values = world.values(tap);
  for (double& value : values) value = std::fmod(value + 1, 16);
  world.corrupt(tap, values);
  EXPECT_TRUE(
      refused(harness::judge_experts(world.comparison(tap), world.biases.begin()->second, nullptr),
              "band"));
}

}  // namespace
}  // namespace dsv32::suites
