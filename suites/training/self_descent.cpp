// The loss_descent suite must catch every planted bug, name its first step and place, and never cry
// wolf.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "harness/training/loss_descent.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "suites/kit/case_report.h"

namespace dsv32::suites {
namespace {

using harness::DescentPlan;
using harness::Mode;
using harness::Party;
using harness::TrainingJob;
using harness::TrainingResult;
using harness::Trust;
using harness::Verdict;
using training::Bug;

constexpr int64_t kShort = 4;  // steps: every bug shows by then

TrainingJob job(Bug bug = Bug::none, uint64_t seed = 0) {
  return {.the_case = io::find_case("tiny-wide"), .bug = bug, .perturbation_seed = seed};
}

TrainingResult short_descent(const TrainingJob& task, int64_t steps = kShort) {
  const DescentPlan plan{.steps = steps};
  return judge_descent(task, harness::full_descent(task.the_case), plan);
}

const Verdict& verdict_of(const TrainingResult& result, const std::string& tap, Mode mode) {
  for (const Verdict& v : result.verdicts)
    if (v.subject.party != Party::golden && v.tap == tap && v.mode == mode) return v;
  static const Verdict none;
  return none;
}

std::string first_bad(const TrainingResult& result) {
  return verdict_of(result, steps_name(), Mode::forced).note;
}

std::string expect_first(int64_t step, const char* what, const std::string& of = "") {
  return "first bad: " + step_name(step, what, of);
}

/// The first parameter in table order that has a gradient, and the one that is neglected.
constexpr char kFirst[] = "model.embed_tokens.weight";
std::string neglected_parameter() {
  std::vector<std::string> names;
  for (const WeightSpec& spec : weight_specs(job().the_case.config))
    if (!is_indexer(spec.name) && !is_buffer(spec.name)) names.push_back(spec.name);
  return training::neglected(names);
}

struct Planted {
  std::string name;
  Bug bug;
  std::string first_bad;
};

std::vector<Planted> planted() {
  return {{"l2_decay", Bug::l2_decay, expect_first(0, "update", kFirst)},
          // After one step both moments are corrected to the same numbers.
          {"betas_swapped", Bug::betas_swapped, expect_first(1, "update", kFirst)},
          {"no_bias_correction", Bug::no_bias_correction, expect_first(0, "update", kFirst)},
          // The first step divides by the gradient's own size: clipping shows where that is not far
          // above eps.
          {"clip_after_step", Bug::clip_after_step, expect_first(0, "update", kFirst)},
          {"lr_1_05", Bug::lr_1_05, expect_first(0, "update", kFirst)},
          {"one_never_updated", Bug::one_never_updated,
           expect_first(0, "update", neglected_parameter())},
          {"gradients_not_zeroed", Bug::gradients_not_zeroed, expect_first(1, "grad", kFirst)},
          {"batch_repeated", Bug::batch_repeated, expect_first(1, "loss")}};
}

class PlantedBug : public testing::TestWithParam<size_t> {};

TEST_P(PlantedBug, IsCaughtAtItsFirstStepAndPlace) {
  const Planted bug = planted()[GetParam()];
  const TrainingResult result = short_descent(job(bug.bug));
  const Verdict& free = verdict_of(result, curve_name("loss"), Mode::free);
  std::printf("%-22s %-60s free curve: %s, %.3g of the limit\n", bug.name.c_str(),
              first_bad(result).c_str(), std::string(to_string(free.trust)).c_str(), free.margin());
  EXPECT_EQ(first_bad(result), bug.first_bad);
  EXPECT_EQ(verdict_of(result, steps_name(), Mode::forced).trust, Trust::fail);
}

INSTANTIATE_TEST_SUITE_P(All, PlantedBug, testing::Range<size_t>(0, planted().size()),
                         [](const auto& info) { return planted()[info.param].name; });

TEST(PlantedBugs, WrongMeanOverMicroBatchesShowsWhereThereAreMicroBatches) {
  EXPECT_EQ(first_bad(judge_accumulation(job(Bug::micro_batch_mean))),
            expect_first(0, "grad", kFirst));
  EXPECT_EQ(complaints(judge_accumulation(job()).verdicts), "");
}

TEST(PlantedBugs, OnlyTheNeglectedParameterIsNamed) {
  std::vector<std::string> names;
  for (const Verdict& v : short_descent(job(Bug::one_never_updated)).verdicts)
    if (v.trust == Trust::fail && check_of(v.tap).what == "update") names.push_back(v.tap);
  EXPECT_EQ(names, std::vector<std::string>{steps_name("update", neglected_parameter())});
}

/// The free curve alone, over the whole recipe.
Verdict free_verdict(Bug bug) {
  const TrainingJob task = job(bug);
  const harness::Descent descent = harness::full_descent(task.the_case);
  const DescentPlan plan{
      .steps = descent.recipe.steps, .judged = [](int64_t) { return false; }, .golden = false};
  return verdict_of(judge_descent(task, descent, plan), curve_name("loss"), Mode::free);
}

TEST(FreeCurve, LeavesTheBandUnderEveryPlantedBug) {
  EXPECT_EQ(free_verdict(Bug::none).trust, Trust::pass);
  for (const Planted& bug : planted()) {
    const Verdict verdict = free_verdict(bug.bug);
    EXPECT_EQ(verdict.trust, Trust::fail) << bug.name;
    for (const harness::Measure& m : verdict.measures)
      std::printf("%-22s %-18s %10.3g of %g\n", bug.name.c_str(), m.metric.c_str(), m.measured,
                  m.limit);
  }
}

/// What golden and reference are said to be when both are judged by another learning rate.
TrainingResult under_learning_rate(double lr) {
  const TrainingJob task = job();
  harness::Descent descent = harness::full_descent(task.the_case);
  descent.recipe.groups.front().adamw.lr = lr;
  const DescentPlan plan{.steps = descent.recipe.steps, .judged = [](int64_t) { return false; }};
  return judge_descent(task, descent, plan);
}

Trust golden_trust(const TrainingResult& result, const std::string& tap) {
  for (const Verdict& v : result.verdicts)
    if (v.subject.party == Party::golden && v.tap == tap) return v.trust;
  return Trust::missing;
}

TEST(Golden, OfAnotherLearningRateFailsByRecipeCurveAndParameters) {
  const TrainingResult result = under_learning_rate(1.05e-3);
  for (const char* tap : {"recipe", "curve.loss", "curve.grad_norm",
                          "end.param.model.layers.0.input_layernorm.weight"})
    EXPECT_EQ(golden_trust(result, tap), Trust::fail) << tap;
}

TEST(Descent, ThatDoesNotFallIsVacuous) {
  const TrainingResult result = under_learning_rate(0);
  EXPECT_EQ(verdict_of(result, curve_name("loss.falls"), Mode::forced).trust, Trust::vacuous);
  EXPECT_EQ(golden_trust(result, curve_name("loss.falls")), Trust::pass);
}

/// Largest share of each limit, by check.
using Extremes = std::map<std::string, double>;

void note_extremes(const TrainingResult& result, Extremes& extremes) {
  for (const Verdict& v : result.verdicts) {
    for (const harness::Measure& m : v.measures) {
      const CheckName check = check_of(v.tap);
      const std::string kind = to_string(check.scope) + " " + check.what + ", " + m.metric;
      extremes[kind] = std::max(extremes[kind], m.measured);
    }
  }
}

TEST(Clean, HundredRunsWithoutAlarm) {
  constexpr int kRuns = 100;
  constexpr int64_t kSteps = 3;
  Extremes extremes;
  int alarms = 0;
  for (int run = 1; run <= kRuns; ++run) {
    const TrainingResult result = short_descent(job(Bug::none, static_cast<uint64_t>(run)), kSteps);
    note_extremes(result, extremes);
    if (complaints(result.verdicts).empty()) continue;
    ++alarms;
    ADD_FAILURE() << "run " << run << ": " << complaints(result.verdicts);
  }
  for (const auto& [name, value] : extremes) std::printf("%-50s %10.3g\n", name.c_str(), value);
  std::printf("%d clean runs, %d false alarms\n", kRuns, alarms);
}

}  // namespace
}  // namespace dsv32::suites
