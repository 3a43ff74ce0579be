// Every gradient of one case against golden and oracle.

#include <gtest/gtest.h>

#include <set>

#include "src/io/io.h"
#include "src/model/trace.h"
#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

using harness::Trust;
using harness::Verdict;

const harness::Report& report() { return case_report("backward", {"reference", "optimized"}); }

void expect_every_gradient_judged(const std::string& subject) {
  std::set<std::string> judged;
  for (const Verdict& v : verdicts_of(report(), subject)) {
    if (v.trust == Trust::pass && v.checked > 0) judged.insert(v.tap);
  }
  for (const std::string& tap : gradient_taps(io::find_case(suite_case()).config)) {
    EXPECT_EQ(judged.count(tap), 1u) << subject << " " << tap;
  }
}

TEST(Backward, EverySubjectAgreesWithTheOracle) {
  for (const char* subject : {"golden", "reference float32", "reference bfloat16",
                              "optimized float32", "optimized bfloat16"}) {
    const std::vector<Verdict> verdicts = verdicts_of(report(), subject);
    EXPECT_FALSE(verdicts.empty()) << subject << " was not judged";
    EXPECT_EQ(complaints(verdicts), "");
    expect_every_gradient_judged(subject);
  }
}

TEST(Backward, ReportIsGreen) { EXPECT_EQ(static_cast<int>(report().exit_code()), 0); }

}  // namespace
}  // namespace dsv32::suites
