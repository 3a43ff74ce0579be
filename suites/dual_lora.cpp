// Dual LoRA on one case: peft's golden and the reference against the float64 run.

#include <gtest/gtest.h>

#include "suites/case_report.h"
#include "suites/suite.h"

namespace dsv32::suites {
namespace {

const harness::Report& report() { return case_report("dual_lora"); }

TEST(DualLora, GoldenAgreesWithTheOracle) {
  EXPECT_FALSE(verdicts_of(report(), "golden").empty());
  EXPECT_EQ(complaints(verdicts_of(report(), "golden")), "");
}

TEST(DualLora, ReferenceAgreesWithTheOracle) {
  EXPECT_FALSE(verdicts_of(report(), "reference float32").empty());
  EXPECT_EQ(complaints(verdicts_of(report(), "reference float32")), "");
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
