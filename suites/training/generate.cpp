// Greedy decoding on one case: the golden of real transformers and both models, each on its own
// history.

#include <gtest/gtest.h>

#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

const harness::Report& report() { return case_report("generate", {"reference", "optimized"}); }

bool judged(const std::string& subject, const std::string& tap) {
  for (const harness::Verdict& verdict : verdicts_of(report(), subject))
    if (verdict.tap == tap && verdict.trust == harness::Trust::pass) return true;
  return false;
}

TEST(Generate, EverybodyAgreesWithTheOracleStepByStep) {
  for (const char* side : {"golden", "reference float32", "reference bfloat16", "optimized float32",
                           "optimized bfloat16"}) {
    for (const char* tap : {"gen.tokens", "gen.logits", "layers.1.topk", "layers.1.router.experts"})
      EXPECT_TRUE(judged(side, tap)) << side << " " << tap;
    EXPECT_EQ(complaints(verdicts_of(report(), side)), "");
  }
}

TEST(Generate, ReportIsGreen) { EXPECT_EQ(static_cast<int>(report().exit_code()), 0); }

}  // namespace
}  // namespace dsv32::suites
