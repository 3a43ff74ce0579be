// SFT with a frozen indexer on one case: golden and both models against the float64 run.

#include <gtest/gtest.h>

#include <algorithm>

#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

using harness::Trust;
using harness::Verdict;

const harness::Report& report() {
  return case_report("sft_frozen_indexer", {"reference", "optimized"});
}

TEST(SftFrozenIndexer, GoldenAgreesWithTheOracle) {
  EXPECT_FALSE(verdicts_of(report(), "golden").empty());
  EXPECT_EQ(complaints(verdicts_of(report(), "golden")), "");
}

TEST(SftFrozenIndexer, BothModelsAgreeWithTheOracle) {
  for (const char* side : {"reference float32", "optimized float32"}) {
    EXPECT_FALSE(verdicts_of(report(), side).empty()) << side;
    EXPECT_EQ(complaints(verdicts_of(report(), side)), "");
  }
}

TEST(SftFrozenIndexer, ReportIsGreenAndHasItsCost) {
  EXPECT_EQ(static_cast<int>(report().exit_code()), 0);
  EXPECT_FALSE(report().figures.empty());
  const harness::Cost& cost = report().costs.front();
  EXPECT_EQ(cost.case_name + " " + cost.suite, suite_case() + " sft_frozen_indexer");
  EXPECT_GT(cost.tokens_per_second, 0);
  EXPECT_GT(cost.peak_gib, 0);
}

}  // namespace
}  // namespace dsv32::suites
