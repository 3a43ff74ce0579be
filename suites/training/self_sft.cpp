// The SFT suite must catch every planted bug, name the right check first, and never cry wolf.

#include <gtest/gtest.h>

#include <map>

#include "harness/judge/judge.h"
#include "harness/training/suite.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "suites/kit/clean_runs.h"

namespace dsv32::suites {
namespace {

using harness::Party;
using harness::TrainingJob;
using harness::Trust;
using harness::Verdict;
using training::Bug;

constexpr char kFirstIndexerTensor[] = "model.layers.0.self_attn.indexer.wq_b.weight";

TrainingJob job() { return {.the_case = io::find_case("tiny-wide")}; }

/// Names of the failing checks of the reference, in order.
std::vector<std::string> failing(const TrainingJob& task) {
  std::vector<std::string> names;
  for (const Verdict& v : judge_sft_frozen_indexer(task).verdicts)
    if (v.subject.party != Party::golden && v.trust == Trust::fail) names.push_back(v.tap);
  return names;
}

TEST(SelfSft, OneTensorLeftTrainableIsNamedAlone) {
  TrainingJob task = job();
  task.bug = Bug::indexer_tensor_trainable;
  const std::vector<std::string> names = failing(task);
  const std::vector<std::string> expected = {rule_name("frozen.grad", kFirstIndexerTensor),
                                             end_name("param", kFirstIndexerTensor)};
  EXPECT_EQ(names, expected);
}

TEST(SelfSft, DecayOfFrozenWeightsIsSeenInEveryOneOfThem) {
  TrainingJob task = job();
  task.bug = Bug::decay_frozen;
  const std::vector<std::string> names = failing(task);
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.front(), end_name("param", kFirstIndexerTensor));
  size_t indexer_tensors = 0;
  for (const WeightSpec& spec : weight_specs(task.the_case.config))
    indexer_tensors += is_indexer(spec.name) ? 1 : 0;
  EXPECT_EQ(names.size(), indexer_tensors);
}

TEST(SelfSft, AttachedScoreIsSeenInTheIndexersGradient) {
  TrainingJob task = job();
  task.dialect.indexer.scores_attached = true;
  const std::vector<std::string> names = failing(task);
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.front(), rule_name("unfrozen.grad", kFirstIndexerTensor));
  for (const std::string& name : names) {
    const CheckName check = check_of(name);
    EXPECT_TRUE(check.what == "unfrozen.grad" || check.what == "frozen.grad") << name;
  }
}

TEST(SelfSft, PromptThatCountsIsSeenByTheMaskedTokens) {
  TrainingJob task = job();
  task.bug = Bug::prompt_not_masked;
  const std::vector<std::string> names = failing(task);
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.front(), "labels.mean");
  for (const char* name : {"labels.masked.loss", "labels.masked.gradients", "step.0.loss"})
    EXPECT_EQ(std::count(names.begin(), names.end(), name), 1) << name;
}

TEST(SelfSft, OptimizerBugsAreSeenInStepOrParameter) {
  const std::map<Bug, std::string> rows = {{Bug::lr_1_05, "step.1.loss"},
                                           {Bug::l2_decay, "step.1.loss"},
                                           {Bug::betas_swapped, "step.3.loss"},
                                           {Bug::batch_repeated, "step.1.loss"},
                                           {Bug::clip_after_step, "step.4.loss"}};
  for (const auto& [bug, first] : rows) {
    TrainingJob task = job();
    task.bug = bug;
    const std::vector<std::string> names = failing(task);
    ASSERT_FALSE(names.empty()) << static_cast<int>(bug);
    EXPECT_EQ(names.front(), first) << static_cast<int>(bug);
  }
}

TEST(SelfSft, CleanRunsAreGreen) {
  expect_clean_runs(job(), harness::judge_sft_frozen_indexer, /*first_seed=*/1);
}

}  // namespace
}  // namespace dsv32::suites
