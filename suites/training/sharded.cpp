// ZeRO-2 training against the unsharded run: every world of a case, every planted bug, clean runs.

#include <gtest/gtest.h>

#include <set>

#include "harness/training/sharded/run.h"
#include "harness/training/side.h"
#include "src/io/io.h"
#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"
#include "suites/kit/threaded_world.h"

namespace dsv32::suites {
namespace {

using harness::ShardedKind;
using harness::ShardedPlan;
using harness::ShardedRun;
using harness::TrainingJob;
using harness::Trust;
using harness::Verdict;
using training::Bug;

bool is_tiny() { return io::find_case(suite_case()).config_name == "tiny"; }

TrainingJob job() { return {.the_case = io::find_case(suite_case())}; }

/// The judge's own part of a job uses every core; ranks in threads share them.
ShardedRun run_in_threads(const ShardedPlan& plan) {
  ShardedRun result;
  in_world(plan.ranks, [&](training::World& world) {
    ShardedRun run = harness::run_rank(world, plan);
    if (world.rank() == 0) result = std::move(run);
  });
  return result;
}

std::vector<Verdict> judge(const ShardedPlan& plan) {
  const TrainingJob own = job();
  harness::set_training_threads(own.the_case, own.settings);
  return harness::judge_world(own, plan, run_in_threads(plan));
}

ShardedPlan plan_of(int ranks, int64_t steps) {
  return {.case_name = suite_case(), .ranks = ranks, .steps = steps};
}

const Verdict* first_red(const std::vector<Verdict>& verdicts) {
  for (const Verdict& verdict : verdicts)
    if (verdict.trust == Trust::fail) return &verdict;
  return nullptr;
}

std::set<std::string> expected_subjects() {
  std::vector<std::string> worlds = {"2 ranks"}, goldens = {"golden, 2 ranks"};
  if (is_tiny()) {
    worlds = {"1 rank",  "2 ranks", "2 ranks, accumulation 3", "2 ranks, dual LoRA",
              "3 ranks", "4 ranks", "3 ranks, frozen indexer", "8 ranks"};
    goldens.push_back("golden, 2 ranks, accumulation 3");
  }
  std::set<std::string> subjects(goldens.begin(), goldens.end());
  for (const char* impl : {"reference, ", "optimized, "})
    for (const std::string& world : worlds) subjects.insert(impl + world);
  return subjects;
}

TEST(Sharded, EveryWorldEqualsTheUnshardedRunAndDeepSpeed) {
  const harness::TrainingResult result = harness::judge_sharded(
      {.the_case = io::find_case(suite_case()), .impls = {"reference", "optimized"}});
  EXPECT_EQ(complaints(result.verdicts), "");
  EXPECT_GT(result.tokens, 0);
  std::set<std::string> subjects;
  for (const Verdict& verdict : result.verdicts) subjects.insert(verdict.subject.label);
  EXPECT_EQ(subjects, expected_subjects());
}

struct Planted {
  Bug bug;
  std::string tap;   // of the first failing check
  std::string note;  // words of its note
};

/// What must be seen first, on three ranks: 24 rows fall 8, 8, 8 and no share divides.
const std::vector<Planted>& planted_bugs() {
  static const std::vector<Planted> all = {
      {Bug::sum_instead_of_mean, "step.0.grad.model.embed_tokens.weight", ""},
      {Bug::gradient_accumulated_twice, "step.0.grad.model.embed_tokens.weight", ""},
      {Bug::token_mean, "step.0.grad.model.embed_tokens.weight", ""},
      {Bug::padding_in_norm, "step.0.grad_norm", ""},
      {Bug::clip_by_local_norm, "step.0.updates", "model.embed_tokens.weight"},
      // The first parameter that reaches into the last third of all elements.
      {Bug::last_shard_dropped, "step.0.updates", "model.layers.1.mlp.experts.6.up_proj.weight"},
      {Bug::stale_parameters, "step.0.ranks", "rank 1"},
  };
  return all;
}

TEST(Sharded, EveryPlantedBugIsNamedAtItsFirstStep) {
  if (!is_tiny()) return;  // the same code; the tiny case shows it in a tenth of the time
  for (const Planted& planted : planted_bugs()) {
    ShardedPlan plan = plan_of(3, 1);
    plan.bug = planted.bug;
    const std::vector<Verdict> verdicts = judge(plan);
    const Verdict* failure = first_red(verdicts);
    ASSERT_NE(failure, nullptr) << planted.tap;
    EXPECT_EQ(failure->tap, planted.tap) << failure->note;
    EXPECT_NE(failure->note.find(planted.note), std::string::npos) << failure->note;
  }
}

TEST(Sharded, UnevenRowsAndAccumulationOnEveryWorld) {
  if (!is_tiny()) return;
  for (const int ranks : {5, 7}) EXPECT_EQ(complaints(judge(plan_of(ranks, 1))), "") << ranks;
  for (const int ranks : {1, 3, 4, 8}) {
    ShardedPlan plan = plan_of(ranks, 1);
    plan.accumulation = 3;
    EXPECT_EQ(complaints(judge(plan)), "") << ranks;
  }
}

TEST(Sharded, MoreRanksThanRowsIsRefused) {
  const ShardedPlan plan = plan_of(static_cast<int>(job().the_case.B) + 1, 1);
  training::World alone;
  EXPECT_THROW(harness::run_rank(alone, plan), Error);
}

TEST(Sharded, CleanRunsRaiseNoAlarm) {
  if (!is_tiny()) return;
  constexpr uint64_t kRuns = 40;
  for (uint64_t seed = 1; seed <= kRuns; ++seed) {
    ShardedPlan plan = plan_of(2, 1);
    plan.perturbation_seed = seed;
    EXPECT_EQ(complaints(judge(plan)), "") << "perturbation seed " << seed;
  }
}

}  // namespace
}  // namespace dsv32::suites
