// The indexer trained by its KL on one case: both stages and the joint loss, golden and both models
// against the float64 run. What it must catch: self_indexer_kl.cpp.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "harness/training/suite.h"
#include "src/io/io.h"
#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

using harness::TrainingResult;
using harness::Trust;
using harness::Verdict;

const Case& the_case() { return io::find_case(suite_case()); }
const std::string kSides[] = {"reference float32, ", "optimized float32, "};
bool is_tiny() { return the_case().config_name == "tiny"; }

const TrainingResult& result() {
  static const TrainingResult done =
      harness::judge_indexer_kl({.the_case = the_case(), .impls = {"reference", "optimized"}});
  return done;
}

std::vector<std::string> tasks() {
  if (is_tiny()) return {"warmup", "sparse", "joint"};
  return {"warmup", "sparse"};
}

int64_t passed(const std::string& subject, const std::string& tap) {
  const auto& verdicts = result().verdicts;
  return std::count_if(verdicts.begin(), verdicts.end(), [&](const Verdict& v) {
    return v.subject.label == subject && v.tap == tap && v.trust == Trust::pass && v.checked > 0;
  });
}

Objective objective_of(const std::string& task) {
  return {.lm = task == "joint", .kl = task == "warmup" ? KlStage::warmup : KlStage::sparse};
}

TEST(IndexerKl, EverythingPasses) {
  EXPECT_EQ(complaints(result().verdicts), "");
  EXPECT_GT(result().tokens, 0);
}

void expect_every_tap_judged(const std::string& side, const std::string& task) {
  for (const std::string& tap : kl_taps(the_case().config, objective_of(task)))
    EXPECT_GE(passed(side + task, tap), 2) << side << task << " " << tap;
  for (const std::string& tap : gradient_taps(the_case().config, objective_of(task)))
    EXPECT_EQ(passed(side + task, tap), 1) << side << task << " " << tap;
}

TEST(IndexerKl, EveryTapOfBothModelsIsJudgedStagedAndForced) {
  for (const std::string& side : kSides)
    for (const std::string& task : tasks()) expect_every_tap_judged(side, task);
}

TEST(IndexerKl, EveryTapThatTheGoldenKeepsIsJudged) {
  for (const std::string& task : tasks()) {
    if (!is_tiny()) {  // it keeps no taps
      EXPECT_EQ(passed("golden, " + task, "curve.kl"), 1) << task;
      continue;
    }
    const std::string golden = "golden, " + task;
    for (const std::string& tap : kl_taps(the_case().config, objective_of(task)))
      EXPECT_EQ(passed(golden, tap), tap.ends_with("kl.dscores") ? 0 : 1) << task << " " << tap;
    Objective alone = objective_of(task);
    alone.lm = false;
    for (const std::string& tap : gradient_taps(the_case().config, alone))
      EXPECT_EQ(passed(golden, tap), 1) << task << " " << tap;
  }
}

void expect_training_judged(const std::string& side, const std::string& task) {
  const std::string subject = side + task;
  for (const char* check : {"curve.kl", "parameters.moved", "curve.kl.falls", "curve.recall"})
    EXPECT_EQ(passed(subject, check), 1) << subject << " " << check;
  EXPECT_EQ(passed(subject + ", step by step", "steps"), 1) << subject;
  if (task == "joint") {
    EXPECT_EQ(passed(subject, "gradient_paths"), 1) << subject;
    EXPECT_EQ(passed(subject, "curve.loss"), 1) << subject;
    return;
  }
  for (const char* input : {"detached.hidden", "detached.q_latent", "detached.target"})
    EXPECT_EQ(passed(subject, input), 1) << subject << " " << input;
}

TEST(IndexerKl, EveryTrainingIsJudged) {
  for (const std::string& task : tasks()) {
    EXPECT_EQ(passed("golden, " + task, "curve.kl"), 1) << task;
    for (const std::string& side : kSides) expect_training_judged(side, task);
  }
}

TEST(IndexerKl, FiguresTellBeforeAndAfter) {
  EXPECT_EQ(result().figures.size(), 6 * tasks().size() * std::size(kSides));
  for (const auto& [name, value] : result().figures) {
    std::printf("%-48s %.4f\n", name.c_str(), value);
    EXPECT_GT(value, 0) << name;
  }
}

}  // namespace
}  // namespace dsv32::suites
