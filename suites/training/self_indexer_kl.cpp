// The suite indexer_kl must catch every bug of the indexer's KL and stay silent in 100 clean runs.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "harness/judge/judge.h"
#include "harness/training/kl_step.h"
#include "harness/training/suite.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "suites/kit/case_report.h"

namespace dsv32::suites {
namespace {

using harness::TrainingJob;
using harness::TrainingResult;
using harness::Trust;
using harness::Verdict;

const Case& tiny_wide() { return io::find_case("tiny-wide"); }

std::vector<KnownBug> kl_bugs() {
  std::vector<KnownBug> bugs;
  for (const KnownBug& bug : known_bugs())
    if (bug.objective.kl != KlStage::none) bugs.push_back(bug);
  return bugs;
}

/// The first failure among the verdicts about one objective.
std::string first_failing_tap(const TrainingResult& result, const std::string& task) {
  std::vector<Verdict> theirs;
  for (const Verdict& v : result.verdicts)
    if (v.subject.label.ends_with(", " + task)) theirs.push_back(v);
  const Verdict* failure = harness::first_failure(theirs);
  return failure == nullptr ? "" : failure->tap;
}

class IndexerKlBug : public testing::TestWithParam<size_t> {};

TEST_P(IndexerKlBug, IsCaughtAtItsTap) {
  const KnownBug bug = kl_bugs()[GetParam()];
  TrainingJob job{.the_case = tiny_wide()};
  bug.plant(job.dialect);
  const TrainingResult result = harness::judge_indexer_kl(job);
  const std::string stage = bug.objective.kl == KlStage::warmup ? "warmup" : "sparse";
  const std::string alone = first_failing_tap(result, stage);
  const std::string joint = first_failing_tap(result, "joint");
  std::printf("%-28s %-8s %-48s joint %s\n", bug.name.c_str(), stage.c_str(), alone.c_str(),
              joint.c_str());
  EXPECT_EQ(tap_stem(alone), bug.first_tap);
  EXPECT_NE(joint, "") << "the joint loss hides it";
}

INSTANTIATE_TEST_SUITE_P(All, IndexerKlBug, testing::Range<size_t>(0, kl_bugs().size()),
                         [](const auto& info) {
                           std::string name = kl_bugs()[info.param].name;
                           std::erase(name, '-');
                           return name;
                         });

/// A bug of the training loop: the first step's gradients are right, what follows is not.
class IndexerKlTraining : public testing::TestWithParam<std::pair<training::Bug, const char*>> {};

TEST_P(IndexerKlTraining, IsCaughtInItsFirstStep) {
  const auto& [bug, first] = GetParam();
  TrainingJob job{.the_case = tiny_wide()};
  job.bug = bug;
  TrainingResult result;
  harness::judge_kl_task(job, harness::kl_tasks(tiny_wide())[1], result);
  std::string caught;
  for (const Verdict& v : result.verdicts)
    if (v.tap == "steps" && v.trust == Trust::fail) caught = v.note;
  EXPECT_TRUE(caught.starts_with(std::string("first bad: ") + first)) << caught;
  EXPECT_EQ(first_failing_tap(result, "sparse"), "curve.kl");
}

INSTANTIATE_TEST_SUITE_P(
    All, IndexerKlTraining,
    testing::Values(std::pair(training::Bug::lr_1_05, "step.0.update.model.layers.0."),
                    std::pair(training::Bug::one_never_updated, "step.0.update.model.layers.1."),
                    std::pair(training::Bug::gradients_not_zeroed, "step.1.grad.model.layers.0.")));

/// Largest value of every measure over the clean runs.
struct Largest {
  double measured = 0, limit = 0;
  std::string where;
};

/// What a check is about: "golden gradient", "reference param", ...
std::string family_of(const Verdict& v) {
  const std::string side(to_string(v.subject.party));
  const CheckName check = check_of(v.tap);
  if (check.scope == CheckScope::model && check.of.empty()) return side + " " + tap_stem(v.tap);
  return side + " " + to_string(check.scope) + " " + check.what;
}

/// One objective in turn: the first of each to its end, the others two cycles through the batches.
TrainingResult clean_run(uint64_t seed) {
  constexpr int64_t kTwoCycles = 8;
  const std::vector<harness::KlTask> tasks = harness::kl_tasks(tiny_wide());
  harness::KlTask task = tasks[seed % tasks.size()];
  if (seed > tasks.size()) {
    task.steps = kTwoCycles;
    task.whole = false;
  }
  TrainingResult result;
  harness::judge_kl_task({.the_case = tiny_wide(), .perturbation_seed = seed}, task, result);
  return result;
}

TEST(IndexerKlClean, NoFalseAlarmIn100Runs) {
  constexpr uint64_t kRuns = 100;
  std::map<std::string, Largest> extremes;
  for (uint64_t seed = 1; seed <= kRuns; ++seed) {
    const TrainingResult result = clean_run(seed);
    EXPECT_EQ(complaints(result.verdicts), "") << "seed " << seed;
    for (const Verdict& v : result.verdicts) {
      for (const harness::Measure& m : v.measures) {
        const std::string mode(to_string(v.mode));
        Largest& largest = extremes[family_of(v) + " " + mode + " " + m.metric];
        if (m.measured < largest.measured) continue;
        largest = {m.measured, m.limit, std::to_string(seed) + " " + v.subject.label + " " + v.tap};
      }
    }
  }
  for (const auto& [what, largest] : extremes)
    std::printf("%-50s %10.3g %10.3g  %s\n", what.c_str(), largest.measured, largest.limit,
                largest.where.c_str());
}

}  // namespace
}  // namespace dsv32::suites
