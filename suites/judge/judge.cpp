// Whole judgements: order, trust states, first failure, exact rules, arbitration.
#include "harness/judge/judge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "suites/kit/world.h"

namespace dsv32::suites {
namespace {

using harness::Evidence;
using harness::Fault;
using harness::first_failure;
using harness::judge;
using harness::judge_staged;
using harness::Mode;
using harness::Trust;
using harness::Verdict;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int kWorlds = 20;

const Verdict* find(const std::vector<Verdict>& verdicts, const std::string& tap, Mode mode) {
  const auto found = std::find_if(verdicts.begin(), verdicts.end(),
                                  [&](const Verdict& v) { return v.tap == tap && v.mode == mode; });
  return found == verdicts.end() ? nullptr : &*found;
}

int64_t count(const std::vector<Verdict>& verdicts, Trust trust) {
  return std::count_if(verdicts.begin(), verdicts.end(),
                       [&](const Verdict& v) { return v.trust == trust; });
}

std::vector<Verdict> judge_all(const Evidence& evidence) {
  return judge(evidence, judge_staged(evidence));
}

// The first failing tap of a world with one corrupted tap.
std::string first_of(World& world) {
  const std::vector<Verdict> verdicts = judge_all(world.evidence());
  const Verdict* first = first_failure(verdicts);
  return first == nullptr ? "" : first->tap;
}

template <typename Change>
std::string first_after(const std::string& tap, Change change) {
  World world(1);
  std::vector<double> values = world.values(tap);
  change(world, values);
  world.corrupt(tap, values);
  return first_of(world);
}

TEST(SelfJudge, CleanTracesPassEveryCheck) {
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (uint64_t seed = 101; seed < 101 + kWorlds; ++seed) {
      const World world(seed, dtype);
      const std::vector<Verdict> verdicts = judge_all(world.evidence());
      const Verdict* first = first_failure(verdicts);
      EXPECT_EQ(first, nullptr) << seed << ": " << show(*first);
      EXPECT_EQ(count(verdicts, Trust::pass), std::ssize(verdicts));
    }
}

TEST(SelfJudge, EveryTapHasAStagedAndAForcedVerdictInOrder) {
  const World world(1);
  const std::vector<Verdict> verdicts = judge_all(world.evidence());
  std::vector<std::string> expected = {"selection.exercised"}, got;
  for (int pass = 0; pass < 2; ++pass)
    for (const std::string& tap : forward_taps(world.c.config)) expected.push_back(tap);
  for (const std::string& tap : gradient_taps(world.c.config)) expected.push_back(tap);
  for (const Verdict& verdict : verdicts) got.push_back(verdict.tap);
  EXPECT_EQ(got, expected);
  for (const Verdict& verdict : verdicts) {
    EXPECT_EQ(verdict.subject.label, "judged");
    EXPECT_GT(verdict.checked, 0) << verdict.tap;
    EXPECT_FALSE(verdict.measures.empty()) << verdict.tap;
  }
}

TEST(SelfJudge, EachTraceCorruptionIsCaughtAtItsTap) {
  const std::string out = "layers.0.attn.out", topk = "layers.1.topk";
  EXPECT_EQ(first_after(out, [](World&, std::vector<double>& v) { v[64 * 9] = kNaN; }), out);
  EXPECT_EQ(first_after(out,
                        [](World&, std::vector<double>& v) {
                          for (int64_t i = 64 * 9; i < 64 * 10; ++i) v[i] *= 1.01;
                        }),
            out);
  EXPECT_EQ(first_after(out,
                        [](World&, std::vector<double>& v) {
                          std::swap_ranges(v.begin() + 64 * 9, v.begin() + 64 * 10,
                                           v.begin() + 64 * 11);
                        }),
            out);
  EXPECT_EQ(first_after(out,
                        [&](World& w, std::vector<double>& v) {
                          const auto largest =
                              std::max_element(v.begin() + 64 * 9, v.begin() + 64 * 10);
                          *largest +=
                              128 * harness::element_noise(w.comparison(out), largest - v.begin());
                        }),
            out);
  EXPECT_EQ(first_after(topk,
                        [](World&, std::vector<double>& v) {
                          double other = 0;  // row 30 sees 31 keys and picks 8
                          const auto row = v.begin() + 30 * 8;
                          while (std::find(row, row + 8, other) != row + 8) ++other;
                          *row = other;
                        }),
            topk);
  EXPECT_EQ(first_after("layers.1.hidden",
                        [](World& w, std::vector<double>& v) {
                          v = w.values("layers.0.hidden");  // a stale layer
                        }),
            "layers.1.hidden");
}

TEST(SelfJudge, GradientCorruptionsAreCaughtAtTheirTap) {
  for (const std::string& tap : gradient_taps(world_case().config)) {
    if (tap.find(".experts.1") != std::string::npos) continue;
    EXPECT_EQ(first_after(tap,
                          [](World&, std::vector<double>& v) {
                            for (double& x : v) x *= 0.5;
                          }),
              tap);
  }
}

TEST(SelfJudge, StagedFailuresComeBeforeForcedOnes) {
  World world(2);
  std::vector<double> values = world.values("layers.0.attn.out");
  for (double& x : values) x *= 2;
  Trace staged_oracle = world.oracle;  // staged, the early tap is right on its own inputs
  staged_oracle.put("layers.0.attn.out",
                    HostTensor::from_doubles(DType::float64, {2, 33, 64}, values));
  world.corrupt("layers.0.attn.out", values);
  std::vector<double> later = world.values("layers.1.hidden");
  for (double& x : later) x *= 2;
  world.corrupt("layers.1.hidden", later);
  Evidence evidence = world.evidence();
  evidence.staged.oracle = &staged_oracle;
  const std::vector<Verdict> verdicts = judge_all(evidence);
  EXPECT_TRUE(fails(*find(verdicts, "layers.0.attn.out", Mode::forced)));
  EXPECT_TRUE(passes(*find(verdicts, "layers.0.attn.out", Mode::staged)));
  EXPECT_EQ(first_failure(verdicts)->tap, "layers.1.hidden");
  EXPECT_EQ(first_failure(verdicts)->mode, Mode::staged);
}

TEST(SelfJudge, AnExactFailureBeforeAllTapsIsTheFirst) {
  std::vector<Verdict> verdicts(3);
  verdicts[0].tap = "load.weights";
  verdicts[0].mode = Mode::exact;
  verdicts[1].mode = Mode::staged;
  for (Verdict& verdict : verdicts) verdict.trust = Trust::fail;
  EXPECT_EQ(first_failure(verdicts), &verdicts[0]);
  verdicts[0].trust = Trust::pass;
  EXPECT_EQ(first_failure(verdicts), &verdicts[1]);
  verdicts[0].trust = Trust::fail;  // lists that were merged: forced first
  verdicts[0].mode = Mode::forced;
  EXPECT_EQ(first_failure(verdicts), &verdicts[1]);
  EXPECT_EQ(first_failure({}), nullptr);
}

TEST(SelfJudge, ATraceFullOfNanFailsFromTheFirstTapOn) {
  World world(3);
  for (const std::string& tap : world.judged.names()) {
    if (world.judged.find(tap)->dtype() == DType::int32) continue;
    world.corrupt(tap, std::vector<double>(world.judged.find(tap)->numel(), kNaN));
  }
  const std::vector<Verdict> verdicts = judge_all(world.evidence());
  EXPECT_EQ(first_failure(verdicts)->tap, "embed");
  for (const Verdict& verdict : verdicts) {
    const bool set = verdict.tap.ends_with("topk") || verdict.tap.ends_with("router.experts");
    if (set || verdict.tap == "selection.exercised") continue;
    EXPECT_TRUE(fails(verdict)) << show(verdict);
  }
}

TEST(SelfJudge, AnAbsentTapIsMissingForOurOwnAndSkippedForAFile) {
  World world(4);
  world.judged.erase("layers.0.ix.weights");
  world.judged.erase("grad.lm_head.weight");
  Evidence evidence = world.evidence();
  EXPECT_EQ(count(judge_all(evidence), Trust::missing), 2);
  evidence.is_file = true;
  const std::vector<Verdict> verdicts = judge_all(evidence);
  EXPECT_EQ(count(verdicts, Trust::missing), 0);
  EXPECT_EQ(count(verdicts, Trust::skipped), 2);
  for (const Verdict& verdict : verdicts)
    EXPECT_EQ(verdict.trust == Trust::skipped, verdict.note.starts_with("not in the trace"))
        << show(verdict);
}

TEST(SelfJudge, ATapAbsentFromTheOracleIsMissing) {
  World world(5);
  world.oracle.erase("layers.0.attn.ctx");
  EXPECT_EQ(count(judge_all(world.evidence()), Trust::missing), 2);
}

TEST(SelfJudge, AnEmptyTraceIsVacuous) {
  World world(6);
  world.judged = Trace();
  Evidence evidence = world.evidence();
  evidence.is_file = true;
  const std::vector<Verdict> verdicts = judge_all(evidence);
  EXPECT_EQ(verdicts.back().trust, Trust::vacuous);
  EXPECT_EQ(verdicts.back().tap, "taps");
}

TEST(SelfJudge, AFileWithoutLogitsAndLossIsNotGreen) {
  World world(7);
  world.judged.erase("logits");
  Evidence evidence = world.evidence();
  evidence.is_file = true;
  EXPECT_EQ(count(judge_all(evidence), Trust::missing), 0);
  world.judged.erase("loss.lm");
  EXPECT_EQ(count(judge_all(evidence), Trust::missing), 1);
}

TEST(SelfJudge, OnlyLogitsAreJudgedFree) {
  World world(8);
  Trace only;
  only.put("logits", *world.judged.find("logits"));
  world.judged = only;
  Evidence evidence = world.evidence();
  evidence.is_file = true;
  std::vector<Verdict> verdicts = judge_all(evidence);
  ASSERT_NE(find(verdicts, "logits", Mode::free), nullptr);
  EXPECT_TRUE(passes(*find(verdicts, "logits", Mode::free)));
  EXPECT_EQ(find(verdicts, "logits", Mode::staged)->trust, Trust::skipped);
  std::vector<double> values = world.values("logits");
  for (double& x : values) x *= 1.5;
  world.corrupt("logits", values);
  verdicts = judge_all(evidence);
  EXPECT_EQ(first_failure(verdicts)->tap, "logits");
}

TEST(SelfJudge, ValuesBeforeAMissingDecisionAreStillForced) {
  World world(9);
  world.judged.erase("layers.1.router.experts");
  Evidence evidence = world.evidence();
  evidence.is_file = true;
  const std::vector<Verdict> verdicts = judge_all(evidence);
  EXPECT_NE(find(verdicts, "layers.1.router.logits", Mode::forced), nullptr);
  EXPECT_NE(find(verdicts, "layers.1.moe.routed", Mode::free), nullptr);
  EXPECT_NE(find(verdicts, "grad.lm_head.weight", Mode::free), nullptr);
  EXPECT_EQ(find(verdicts, "layers.1.moe.routed", Mode::staged)->trust, Trust::skipped);
  EXPECT_EQ(find(verdicts, "layers.1.moe.shared", Mode::staged)->trust, Trust::pass);
}

TEST(SelfJudge, IndexerGradientsMustBeExactlyZero) {
  World world(10);
  const std::string tap = "grad.model.layers.0.self_attn.indexer.wk.weight";
  world.judged.put(tap, HostTensor(DType::float32, {32, 64}));
  EXPECT_EQ(first_of(world), "");
  std::vector<double> values(32 * 64);
  values[9] = 1e-30;
  world.corrupt(tap, values);
  EXPECT_EQ(first_of(world), tap);
}

/// The distance of a trace's tap to the oracle, `times` as far.
void stretch(const World& world, Trace& trace, const std::string& tap, double times) {
  const HostTensor& oracle = world.truth(tap);
  std::vector<double> values = trace.find(tap)->to_doubles();
  for (size_t i = 0; i < values.size(); ++i) {
    const double truth = oracle.at(static_cast<int64_t>(i));
    values[i] = truth + times * (values[i] - truth);
  }
  trace.put(tap, HostTensor::from_doubles(DType::float32, oracle.shape(), values));
}

/// An expert that few tokens reach: the runs that measure its noise are near by chance.
TEST(SelfJudge, AnExpertsGradientHasAtLeastTheNoiseOfItsSiblings) {
  const std::string before = "grad.model.layers.1.mlp.experts.", after = ".up_proj.weight";
  const std::string tap = before + "3" + after;
  for (const bool noisy_siblings : {true, false}) {
    World world(12);
    for (int64_t expert = 0; expert < 16 && noisy_siblings; ++expert) {
      const std::string sibling = before + std::to_string(expert) + after;
      if (sibling == tap) continue;
      for (Trace* side : {&world.reference, &world.probe, &world.judged})
        stretch(world, *side, sibling, 100);
    }
    stretch(world, world.judged, tap, 100);
    EXPECT_EQ(first_of(world), noisy_siblings ? "" : tap);
  }
}

TEST(SelfJudge, AnAllZeroGradientIsVacuousButForAnExpert) {
  World world(11);
  for (const std::string tap :
       {"grad.lm_head.weight", "grad.model.layers.1.mlp.experts.2.up_proj.weight"}) {
    world.oracle.put(tap, HostTensor(DType::float64, world.truth(tap).shape()));
    world.judged.put(tap, HostTensor(DType::float32, world.truth(tap).shape()));
  }
  std::vector<Verdict> verdicts = judge_all(world.evidence());
  EXPECT_EQ(find(verdicts, "grad.lm_head.weight", Mode::forced)->trust, Trust::vacuous);
  EXPECT_TRUE(
      passes(*find(verdicts, "grad.model.layers.1.mlp.experts.2.up_proj.weight", Mode::forced)));
  std::vector<double> values = world.values("grad.lm_head.weight");
  values[0] = 1e-30;
  world.corrupt("grad.lm_head.weight", values);
  verdicts = judge_all(world.evidence());
  EXPECT_TRUE(fails(*find(verdicts, "grad.lm_head.weight", Mode::forced)));
}

TEST(SelfJudge, ASparseCaseWithoutSelectionIsVacuous) {
  Case c = world_case();
  c.S = 9;  // one row in nine sees more than 8 keys
  c.pad = 0;
  const World world(12, DType::float32, c);
  std::vector<Verdict> verdicts = judge_all(world.evidence());
  EXPECT_EQ(verdicts.front().trust, Trust::vacuous);
  EXPECT_FALSE(verdicts.front().note.empty());
  Evidence evidence = world.evidence();
  c.sparse = false;
  evidence.c = &c;
  EXPECT_EQ(count(judge_all(evidence), Trust::vacuous), 0);
}

TEST(SelfJudge, DenseModeSkipsSelection) {
  Case c = world_case();
  c.config.use_sparse_attention = false;
  c.sparse = false;
  const World world(13, DType::float32, c);
  const std::vector<Verdict> verdicts = judge_all(world.evidence());
  EXPECT_EQ(find(verdicts, "layers.0.topk", Mode::forced)->trust, Trust::skipped);
  EXPECT_EQ(first_failure(verdicts), nullptr) << show(*first_failure(verdicts));
}

TEST(SelfJudge, AGoldenSketchIsJudgedWithItsDecisions) {
  const World world(14);
  golden::Golden golden;
  golden.kind = "sketch";
  for (const std::string& tap : world.judged.names()) {
    const TapKind kind = parse_tap(tap)->info.kind;
    const bool whole = is_decision(tap) || kind == TapKind::scalar;
    if (whole) golden.trace.put(tap, *world.judged.find(tap));
    if (!whole) golden.sketches[tap] = make_sketch(world, tap, *world.judged.find(tap));
  }
  Evidence evidence = world.evidence();
  evidence.staged = {};
  evidence.judged = &golden.trace;
  evidence.golden = &golden;
  std::vector<Verdict> verdicts = judge_all(evidence);
  EXPECT_EQ(first_failure(verdicts), nullptr) << show(*first_failure(verdicts));
  EXPECT_EQ(count(verdicts, Trust::pass), std::ssize(verdicts));
  for (float& x : golden.sketches["layers.1.ffn_norm"].projections) x *= 1.001F;
  EXPECT_EQ(first_failure(judge_all(evidence))->tap, "layers.1.ffn_norm");
}

TEST(SelfJudge, AYardstickWithoutAnOracleAsksNoQuestion) {
  const World world(15);
  Evidence evidence = world.evidence();
  evidence.forced = {};
  for (const Verdict& verdict : judge_all(evidence))
    EXPECT_NE(verdict.mode, Mode::forced) << verdict.tap;
  evidence = world.evidence();
  evidence.staged = {};
  for (const Verdict& verdict : judge_all(evidence))
    EXPECT_NE(verdict.mode, Mode::staged) << verdict.tap;
}

TEST(SelfJudge, StagedVerdictsAreAboutTheTapsThatAreThere) {
  World world(17);
  world.judged.erase("layers.0.ix.weights");
  world.judged.put("train.loss", HostTensor(DType::float32, {3}));
  const Evidence evidence = world.evidence();
  for (const Verdict& verdict : judge_staged(evidence))
    EXPECT_EQ(verdict.mode, Mode::staged) << verdict.tap;
  std::vector<std::string> names;
  for (const Verdict& verdict : judge_all(evidence))
    names.push_back(verdict.tap + " " + std::string(to_string(verdict.mode)));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end()) << "said twice";
}

TEST(SelfJudge, OtherTapsAreListed) {
  World world(16);
  world.judged.put("train.loss", HostTensor(DType::float32, {3}));
  const std::vector<Verdict> verdicts = judge_all(world.evidence());
  EXPECT_EQ(verdicts.back().tap, "curve.loss");
  EXPECT_EQ(verdicts.back().trust, Trust::skipped);
}

struct Arbitration {
  bool golden_ok, golden_present, reference_ok;
  std::optional<bool> candidate_ok;
  Fault fault;
};

// Every combination; without a golden its answer does not count.
TEST(SelfArbitrate, EveryCombinationHasOneFault) {
  const std::optional<bool> none, good = true, bad = false;
  std::vector<Arbitration> table;
  for (const bool golden_ok : {true, false}) {
    table.push_back({golden_ok, false, true, none, Fault::none});
    table.push_back({golden_ok, false, true, good, Fault::none});
    table.push_back({golden_ok, false, true, bad, Fault::candidate});
    table.push_back({golden_ok, false, false, none, Fault::reference});
    table.push_back({golden_ok, false, false, good, Fault::reference});
    table.push_back({golden_ok, false, false, bad, Fault::reference});
  }
  table.push_back({true, true, true, none, Fault::none});
  table.push_back({true, true, true, good, Fault::none});
  table.push_back({true, true, true, bad, Fault::candidate});
  table.push_back({true, true, false, none, Fault::reference});
  table.push_back({true, true, false, good, Fault::reference});
  table.push_back({true, true, false, bad, Fault::reference});
  table.push_back({false, true, true, none, Fault::golden});
  table.push_back({false, true, true, good, Fault::golden});
  table.push_back({false, true, true, bad, Fault::configuration});
  table.push_back({false, true, false, none, Fault::configuration});
  table.push_back({false, true, false, good, Fault::reference});
  table.push_back({false, true, false, bad, Fault::configuration});
  EXPECT_EQ(table.size(), 24U);
  for (const Arbitration& row : table)
    EXPECT_EQ(
        harness::arbitrate(row.golden_ok, row.golden_present, row.reference_ok, row.candidate_ok),
        row.fault)
        << row.golden_ok << row.golden_present << row.reference_ok
        << (row.candidate_ok ? std::to_string(*row.candidate_ok) : "-");
}

TEST(SelfVerdict, NamesAreStable) {
  EXPECT_EQ(to_string(Trust::vacuous), "vacuous");
  EXPECT_EQ(to_string(Mode::staged), "staged");
  EXPECT_EQ(to_string(Fault::configuration), "configuration");
}

}  // namespace
}  // namespace dsv32::suites
