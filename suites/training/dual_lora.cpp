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
  const std::string key = suite_case() + " dual_lora";
  EXPECT_EQ(report().timing.count(key + " tokens per second"), 1u);
  EXPECT_EQ(report().timing.count(key + " peak memory GiB"), 1u);
}

}  // namespace
}  // namespace dsv32::suites
