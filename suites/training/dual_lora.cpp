// Dual LoRA on one case: peft's golden and both models against the float64 run.

#include <gtest/gtest.h>

#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

const harness::Report& report() { return case_report("dual_lora", {"reference", "optimized"}); }

TEST(DualLora, GoldenAgreesWithTheOracle) {
  EXPECT_FALSE(verdicts_of(report(), "golden").empty());
  EXPECT_EQ(complaints(verdicts_of(report(), "golden")), "");
}

TEST(DualLora, BothModelsAgreeWithTheOracle) {
  for (const char* side : {"reference float32", "optimized float32"}) {
    EXPECT_FALSE(verdicts_of(report(), side).empty()) << side;
    EXPECT_EQ(complaints(verdicts_of(report(), side)), "");
  }
}

TEST(DualLora, ReportIsGreenAndHasItsCost) {
  EXPECT_EQ(static_cast<int>(report().exit_code()), 0);
  EXPECT_FALSE(report().figures.empty());
  const harness::Cost& cost = report().costs.front();
  EXPECT_EQ(cost.case_name + " " + cost.suite, suite_case() + " dual_lora");
  EXPECT_GT(cost.tokens_per_second, 0);
  EXPECT_GT(cost.peak_gib, 0);
}

}  // namespace
}  // namespace dsv32::suites
