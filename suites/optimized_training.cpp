// Every training suite on its tiny case, with the optimized model as the judged side.

#include <gtest/gtest.h>

#include "harness/runner.h"
#include "harness/training.h"
#include "src/io/io.h"
#include "suites/case_report.h"

namespace dsv32::suites {
namespace {

class OptimizedTraining : public testing::TestWithParam<std::string> {};

TEST_P(OptimizedTraining, IsGreen) {
  harness::Job job;
  job.impls = {"optimized"};
  job.suites = {GetParam()};
  for (const harness::TrainingSuite& suite : harness::training_suites())
    if (suite.name == GetParam()) job.training = {{suite.name, io::find_case(suite.cases.front())}};
  const harness::Report report = harness::run_job(job);
  EXPECT_EQ(complaints(report.verdicts), "");
  EXPECT_EQ(static_cast<int>(report.exit_code()), 0);
  EXPECT_GT(report.verdicts.size(), 100u);
}

INSTANTIATE_TEST_SUITE_P(Suites, OptimizedTraining,
                         testing::Values("loss_descent", "sft_frozen_indexer", "indexer_kl",
                                         "dual_lora"));

}  // namespace
}  // namespace dsv32::suites
