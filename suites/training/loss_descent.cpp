// Loss descent on one case: golden and both models against the float64 run, step by step and free.

#include <gtest/gtest.h>

#include <algorithm>

#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

using harness::Mode;
using harness::Verdict;

const harness::Report& report() { return case_report("loss_descent", {"reference", "optimized"}); }

bool has(const std::string& subject, const std::string& tap, Mode mode) {
  const std::vector<Verdict> verdicts = verdicts_of(report(), subject);
  return std::any_of(verdicts.begin(), verdicts.end(),
                     [&](const Verdict& v) { return v.tap == tap && v.mode == mode; });
}

TEST(LossDescent, GoldenAgreesWithTheOracleUnderReplay) {
  EXPECT_TRUE(has("golden", "curve.loss", Mode::forced));
  EXPECT_EQ(complaints(verdicts_of(report(), "golden")), "");
  EXPECT_EQ(complaints(verdicts_of(report(), "golden, memorised")), "");
}

TEST(LossDescent, BothModelsAgreeWithTheOracleStepByStepAndFree) {
  for (const std::string side : {"reference float32", "optimized float32"}) {
    EXPECT_TRUE(has(side, "steps", Mode::forced));
    EXPECT_TRUE(has(side, "curve.loss", Mode::free));
    EXPECT_TRUE(has(side + ", 2 micro-batches", "steps", Mode::forced));
    for (const char* note : {"", ", memorised", ", 2 micro-batches"})
      EXPECT_EQ(complaints(verdicts_of(report(), side + note)), "");
  }
}

TEST(LossDescent, AMemorisedRunIsJudgedOnTheTinyCase) {
  EXPECT_EQ(has("golden, memorised", "curve.loss", Mode::forced), suite_case() == "tiny-wide");
}

TEST(LossDescent, ReportIsGreenAndHasItsFigures) {
  EXPECT_EQ(static_cast<int>(report().exit_code()), 0);
  EXPECT_FALSE(report().figures.empty());
}

}  // namespace
}  // namespace dsv32::suites
