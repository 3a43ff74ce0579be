// The indexer trained by its KL on one case: both stages and the joint loss, golden and reference
// against the float64 run. What it must catch: self_indexer_kl.cpp.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "harness/training.h"
#include "src/io/io.h"
#include "suites/case_report.h"
#include "suites/suite.h"

namespace dsv32::suites {
namespace {

using harness::TrainingResult;
using harness::Trust;
using harness::Verdict;

const Case& the_case() { return io::find_case(suite_case()); }
bool is_tiny() { return the_case().config_name == "tiny"; }

const TrainingResult& result() {
  static const TrainingResult done = harness::judge_indexer_kl({.the_case = the_case()});
  return done;
}

std::vector<std::string> tasks() {
  if (is_tiny()) return {"warmup", "sparse", "joint"};
  return {"warmup", "sparse"};
}

int64_t passed(const std::string& subject, const std::string& tap) {
  const auto& verdicts = result().verdicts;
  return std::count_if(verdicts.begin(), verdicts.end(), [&](const Verdict& v) {
    return v.subject == subject && v.tap == tap && v.trust == Trust::pass && v.checked > 0;
  });
}

Objective objective_of(const std::string& task) {
  return {.lm = task == "joint", .kl = task == "warmup" ? KlStage::warmup : KlStage::sparse};
}

TEST(IndexerKl, EverythingPasses) {
  EXPECT_EQ(complaints(result().verdicts), "");
  EXPECT_GT(result().tokens, 0);
}

TEST(IndexerKl, EveryTapOfTheReferenceIsJudgedStagedAndForced) {
  for (const std::string& task : tasks()) {
    for (const std::string& tap : kl_taps(the_case().config, objective_of(task)))
      EXPECT_GE(passed("reference float32, " + task, tap), 2) << task << " " << tap;
    for (const std::string& tap : gradient_taps(the_case().config, objective_of(task)))
      EXPECT_EQ(passed("reference float32, " + task, tap), 1) << task << " " << tap;
  }
}

TEST(IndexerKl, EveryTapThatTheGoldenKeepsIsJudged) {
  for (const std::string& task : tasks()) {
    if (!is_tiny()) {  // it keeps no taps
      EXPECT_EQ(passed("golden, " + task, "kl curve"), 1) << task;
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

TEST(IndexerKl, EveryTrainingIsJudged) {
  for (const std::string& task : tasks()) {
    const std::string reference = "reference float32, " + task;
    for (const char* check : {"kl curve", "who moves", "KL falls", "recall rises"})
      EXPECT_EQ(passed(reference, check), 1) << task << " " << check;
    EXPECT_EQ(passed("golden, " + task, "kl curve"), 1) << task;
    if (task == "joint") {
      EXPECT_EQ(passed(reference, "gradient paths"), 1);
      EXPECT_EQ(passed(reference, "loss curve"), 1);
      continue;
    }
    for (const char* input : {"hidden state", "query latent", "target"})
      EXPECT_EQ(passed(reference, std::string("detached ") + input), 1) << task << " " << input;
  }
}

TEST(IndexerKl, FiguresTellBeforeAndAfter) {
  EXPECT_EQ(result().figures.size(), 6 * tasks().size());
  for (const auto& [name, value] : result().figures) {
    std::printf("%-48s %.4f\n", name.c_str(), value);
    EXPECT_GT(value, 0) << name;
  }
}

}  // namespace
}  // namespace dsv32::suites
