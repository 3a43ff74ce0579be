// Every forward tap of one case: golden, reference float32 and reference bfloat16 against the
// float64 oracle.

#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "src/io/io.h"
#include "src/model/trace.h"
#include "suites/kit/case_report.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

using harness::Mode;
using harness::Trust;
using harness::Verdict;

const harness::Report& report() { return case_report("forward", {"reference", "optimized"}); }

void expect_all_green(const std::string& subject) {
  const std::vector<Verdict> verdicts = verdicts_of(report(), subject);
  EXPECT_FALSE(verdicts.empty()) << subject << " was not judged";
  EXPECT_EQ(complaints(verdicts), "");
}

/// Taps of this subject with a verdict that really compared something.
std::set<std::string> judged_taps(const std::string& subject) {
  std::set<std::string> taps;
  for (const Verdict& v : verdicts_of(report(), subject)) {
    if (v.trust != Trust::skipped && v.checked > 0) taps.insert(v.tap);
  }
  return taps;
}

void expect_every_tap_judged(const std::string& subject) {
  const Case& c = io::find_case(suite_case());
  const std::set<std::string> judged = judged_taps(subject);
  for (const std::string& tap : forward_taps(c.config)) {
    const bool free_by_rule =
        !c.config.use_sparse_attention && parse_tap(tap)->info.kind == TapKind::topk;
    const bool held = !subject.starts_with("optimized") ||
                      tap.find(".attn.logits") == tap.npos && tap.find(".attn.probs") == tap.npos;
    EXPECT_EQ(judged.count(tap), free_by_rule || !held ? 0u : 1u) << subject << " " << tap;
  }
}

TEST(Forward, GoldenAgreesWithTheOracle) { expect_all_green("golden"); }
TEST(Forward, ReferenceFloat32AgreesWithTheOracle) { expect_all_green("reference float32"); }
TEST(Forward, ReferenceBfloat16AgreesWithTheOracle) { expect_all_green("reference bfloat16"); }

TEST(Forward, OptimizedFloat32AgreesWithTheOracle) { expect_all_green("optimized float32"); }
TEST(Forward, OptimizedBfloat16AgreesWithTheOracle) { expect_all_green("optimized bfloat16"); }

TEST(Forward, EveryTapWasJudgedForEverySubject) {
  for (const char* subject : {"golden", "reference float32", "reference bfloat16",
                              "optimized float32", "optimized bfloat16"})
    expect_every_tap_judged(subject);
}

TEST(Forward, EveryCheckIsCountedOnce) {
  std::set<std::tuple<std::string, std::string, Mode>> counted;
  for (const Verdict& v : report().verdicts) {
    EXPECT_TRUE(counted.emplace(v.subject.label, v.tap, v.mode).second)
        << v.subject.label << " " << v.tap << " (" << to_string(v.mode) << ")";
  }
}

TEST(Forward, ReferenceIsJudgedStagedAndForced) {
  std::set<Mode> modes;
  for (const Verdict& v : verdicts_of(report(), "reference float32")) modes.insert(v.mode);
  EXPECT_TRUE(modes.count(Mode::staged) == 1 && modes.count(Mode::forced) == 1);
}

TEST(Forward, ReportIsGreen) { EXPECT_EQ(static_cast<int>(report().exit_code()), 0); }

}  // namespace
}  // namespace dsv32::suites
