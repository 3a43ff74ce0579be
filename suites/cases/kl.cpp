// The ops of the indexer's KL against a plain loop in double: rows with one key, few keys, no key,
// keys of zero probability; and clean runs of every tiny case in both stages.

#include <gtest/gtest.h>

#include <cmath>

#include "harness/cases/case_run.h"
#include "harness/judge/judge.h"
#include "src/io/io.h"
#include "src/reference/ops.h"
#include "suites/kit/case_report.h"

namespace dsv32::suites {
namespace {

using reference::Context;
using torch::Tensor;

constexpr int64_t kHeads = 3, kQueries = 5, kKeys = 6;

/// One batch row: query s sees the first s keys, so query 0 sees none and query 1 one.
struct Example {
  ModelConfig config = io::read_config("tiny");
  Dialect dialect;
  Context ctx{config, dialect, {DType::float64, RoundingStyle::spec}};
  Tensor support = torch::zeros({1, kQueries, kKeys}, torch::kBool);
  Tensor probs = torch::zeros({1, kHeads, kQueries, kKeys}, torch::kFloat64);
  Tensor scores = torch::zeros({1, kQueries, kKeys}, torch::kFloat64);

  Example() {
    for (int64_t s = 0; s < kQueries; ++s)
      for (int64_t t = 0; t < s; ++t) set(s, t);
  }
  void set(int64_t s, int64_t t) {
    support[0][s][t] = true;
    scores[0][s][t] = std::sin(static_cast<double>(3 * s + 5 * t));
    for (int64_t h = 0; h < kHeads; ++h)
      probs[0][h][s][t] = 1.0 + std::cos(static_cast<double>(s + 2 * t + 7 * h));
  }
  Tensor target() const { return reference::kl_target(ctx, probs); }
  Tensor student() const { return reference::kl_student(ctx, scores, support); }
  Tensor rows() const { return reference::kl_rows(ctx, target(), scores, support); }
  Tensor gradient() const { return reference::kl_score_gradient(ctx, target(), scores, support); }
};

/// Target, student and KL of one query by the formulas of docs/spec.md 2.
struct Expected {
  std::vector<double> target, student;
  double kl = 0;
};

Expected expected(const Example& e, int64_t s) {
  Expected out{std::vector<double>(kKeys), std::vector<double>(kKeys)};
  double mass = 0, weight = 0;
  for (int64_t t = 0; t < kKeys; ++t) {
    if (!e.support[0][s][t].item<bool>()) continue;
    for (int64_t h = 0; h < kHeads; ++h) out.target[t] += e.probs[0][h][s][t].item<double>();
    out.student[t] = std::exp(e.scores[0][s][t].item<double>());
    mass += out.target[t];
    weight += out.student[t];
  }
  for (int64_t t = 0; t < kKeys; ++t) {
    if (!e.support[0][s][t].item<bool>()) continue;
    out.target[t] /= mass;
    out.student[t] /= weight;
    if (out.target[t] > 0) out.kl += out.target[t] * std::log(out.target[t] / out.student[t]);
  }
  return out;
}

void expect_formulas(const Example& e) {
  const Tensor target = e.target(), student = e.student(), rows = e.rows(), slope = e.gradient();
  for (int64_t s = 0; s < kQueries; ++s) {
    const Expected want = expected(e, s);
    EXPECT_FLOAT_EQ(rows[0][s].item<double>(), want.kl) << s;
    for (int64_t t = 0; t < kKeys; ++t) {
      EXPECT_FLOAT_EQ(target[0][s][t].item<double>(), want.target[t]) << s << " " << t;
      EXPECT_FLOAT_EQ(student[0][s][t].item<double>(), want.student[t]) << s << " " << t;
      EXPECT_FLOAT_EQ(1 + slope[0][s][t].item<double>(), 1 + want.student[t] - want.target[t])
          << s << " " << t;
    }
  }
}

TEST(SelfKl, FollowsItsFormulas) { expect_formulas(Example()); }

TEST(SelfKl, QueryWithoutKeysIsZero) {
  Example e;
  e.scores[0][0] = -std::numeric_limits<double>::infinity();  // what the mask leaves
  for (const Tensor& tap : {e.target(), e.student(), e.rows(), e.gradient()})
    EXPECT_TRUE(torch::equal(tap[0][0], torch::zeros_like(tap[0][0])));
  EXPECT_TRUE(e.rows().isfinite().all().item<bool>());
  EXPECT_TRUE(e.gradient().isfinite().all().item<bool>());
}

TEST(SelfKl, QueryWithOneKeyIsExactlyZero) {
  const Example e;
  EXPECT_EQ(e.target()[0][1][0].item<double>(), 1);
  EXPECT_EQ(e.student()[0][1][0].item<double>(), 1);
  EXPECT_EQ(e.rows()[0][1].item<double>(), 0);
  EXPECT_EQ(e.gradient()[0][1].abs().max().item<double>(), 0);
}

TEST(SelfKl, KeyOfZeroProbabilityCountsInTheStudentAlone) {
  Example e;
  e.probs[0].select(1, 4).select(1, 2).zero_();  // query 4, key 2
  expect_formulas(e);
  EXPECT_EQ(e.target()[0][4][2].item<double>(), 0);
  EXPECT_DOUBLE_EQ(e.gradient()[0][4][2].item<double>(), e.student()[0][4][2].item<double>());
}

TEST(SelfKl, StudentThatUnderflowsKeepsAFiniteKl) {
  Example e;
  e.scores[0][3][1] = -2000.0;
  EXPECT_EQ(e.student()[0][3][1].item<double>(), 0);
  EXPECT_GT(e.rows()[0][3].item<double>(), 100);
  EXPECT_TRUE(e.rows().isfinite().all().item<bool>());
}

TEST(SelfKl, OffTheSupportEverythingIsExactlyZero) {
  Example e;
  e.scores.masked_fill_(~e.support, 50.0);
  for (const Tensor& tap : {e.target(), e.student(), e.gradient()})
    EXPECT_EQ(tap.masked_select(~e.support).abs().max().item<double>(), 0);
}

class KlStages : public testing::TestWithParam<std::tuple<const char*, KlStage>> {};

TEST_P(KlStages, CleanReferencePasses) {
  const auto& [name, stage] = GetParam();
  const harness::CaseRun run(io::find_case(name), true, {}, {.lm = false, .kl = stage});
  RunOptions options;
  options.backward = run.backward();
  const Trace trace = run.run(options, "clean");
  const auto verdicts = run.judge_subject({.subject = {.label = "clean"}, .trace = &trace});
  const harness::Verdict* failure = harness::first_failure(verdicts);
  EXPECT_EQ(failure == nullptr ? "" : complaints({*failure}), "");
  const auto judged = [&](const std::string& tap) {
    return std::count_if(verdicts.begin(), verdicts.end(), [&](const harness::Verdict& v) {
      return v.tap == tap && v.trust == harness::Trust::pass;
    });
  };
  for (const std::string& tap : kl_taps(run.the_case().config, run.objective()))
    EXPECT_GE(judged(tap), 2) << tap;  // staged and forced
  if (!run.backward()) return;
  for (const std::string& tap : gradient_taps(run.the_case().config, run.objective()))
    EXPECT_EQ(judged(tap), 1) << tap;
}

INSTANTIATE_TEST_SUITE_P(
    Tiny, KlStages,
    testing::Combine(testing::Values("tiny", "tiny-yarn", "tiny-nopad", "tiny-dense", "tiny-short7",
                                     "tiny-short8", "tiny-short9", "tiny-chunk"),
                     testing::Values(KlStage::warmup, KlStage::sparse)),
    [](const auto& info) {
      std::string name = std::get<0>(info.param);
      std::erase(name, '-');
      return name + (std::get<1>(info.param) == KlStage::warmup ? "Warmup" : "Sparse");
    });

}  // namespace
}  // namespace dsv32::suites
