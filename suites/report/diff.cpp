// The difference of two reports, in the terminal, the comment and the page.

#include "harness/report/diff.h"

#include <gtest/gtest.h>

#include <sstream>
#include <string>

#include "harness/report/report.h"
#include "suites/report/three_defects.h"

namespace dsv32::harness {
namespace {

Report of_checks(std::vector<Verdict> verdicts) {
  Report report;
  report.verdicts = std::move(verdicts);
  return report;
}

TEST(SelfReportDiff, SortsEveryCheck) {
  const auto staged = [](const char* tap, Trust trust, double measured) {
    return check(tap, Mode::staged, trust, measured);
  };
  Report before = of_checks(
      {staged("embed", Trust::fail, 9), staged("logits", Trust::pass, 1),
       staged("final_norm", Trust::fail, 9), staged("layers.0.ix.q", Trust::fail, 9),
       staged("layers.0.ix.k", Trust::pass, 1), staged("layers.0.topk", Trust::skipped, 0),
       staged("layers.0.hidden", Trust::pass, 1)});
  Report after = of_checks(
      {staged("embed", Trust::pass, 1), staged("logits", Trust::fail, 9),
       staged("final_norm", Trust::fail, 9), staged("layers.0.ix.q", Trust::fail, 90),
       staged("layers.0.ix.k", Trust::missing, 0), staged("layers.0.topk", Trust::pass, 0)});
  for (Verdict& v : after.verdicts) v.subject.label = "candidate head.safetensors";
  const ReportDiff diff = compare_reports(before, after);
  const auto only = [](const std::vector<ChangedCheck>& checks) {
    return checks.size() == 1 ? checks[0].check : std::to_string(checks.size()) + " checks";
  };
  EXPECT_EQ(only(diff.fixed), "embed (staged)");
  EXPECT_EQ(only(diff.broken), "logits (staged)");
  EXPECT_EQ(only(diff.still), "final_norm (staged)");
  EXPECT_EQ(only(diff.changed), "layers.0.ix.q (staged)");
  EXPECT_EQ(only(diff.tested), "layers.0.topk (staged)");
  ASSERT_EQ(diff.untested.size(), 2u);
  EXPECT_EQ(diff.untested[1].after, "not there");
  EXPECT_EQ(diff.common, 4u);
  EXPECT_TRUE(diff.worse());
}

TEST(SelfReportDiff, TellsDefectsByName) {
  const Report before = three_defects();
  Report after = before;
  after.findings[0].defects[0] = defect("four", "layers.0.q_rope", 0.3);
  after.findings[0].defects[1].severity->logits = 0.4;
  const ReportDiff diff = compare_reports(before, after);
  ASSERT_EQ(diff.new_defects.size(), 1u);
  EXPECT_EQ(diff.new_defects[0].words, "words of four");
  ASSERT_EQ(diff.fixed_defects.size(), 1u);
  EXPECT_EQ(diff.fixed_defects[0].words, "words of one");
  ASSERT_EQ(diff.left_defects.size(), 2u);
  const std::string text = diff_text(diff);
  EXPECT_TRUE(holds(text, "defect left   words of two: logits 50 % off; now logits 40 % off"))
      << text;
  EXPECT_TRUE(holds(diff_markdown(diff), "- **new defect** words of four"));
}

/// A head with a defect that its base does not have, one that both have, and without a third.
std::string against_base(std::string (*render)(const Report&, const Beside&)) {
  const Report before = three_defects();
  Report after = before;
  after.findings[0].defects = {defect("four", "layers.0.q_rope", 0.9),
                               defect("two", "layers.0.ix.k", 0.5)};
  after.verdicts[2].trust = Trust::pass;
  return render(after, {.link = "https://forge/run", .base = &before});
}

TEST(SelfReportDiff, TheCommentTellsWhatTheChangeDidInTwelveLines) {
  std::istringstream lines(against_base(to_markdown));
  std::string head;
  for (int i = 0; i < 12; ++i) {
    std::string line;
    std::getline(lines, line);
    head += line + "\n";
  }
  EXPECT_TRUE(holds(head,
                    "Worse than the base: 1 new defect, 2 fixed, 1 left; "
                    "checks: 1 fixed, 3 still broken."))
      << head;
  EXPECT_TRUE(holds(head, "1. new: **words of four**: logits 90 % off")) << head;
  EXPECT_TRUE(holds(head, "2. in the base too: **words of two**")) << head;
  EXPECT_TRUE(holds(head, "(<https://forge/run>)")) << head;
  EXPECT_TRUE(holds(against_base(to_markdown), "- **fixed defect** words of one"));
}

TEST(SelfReportDiff, ThePageTellsWhatTheChangeDid) {
  const std::string page = against_base(to_html);
  EXPECT_TRUE(holds(page, "<p>Worse than the base: 1 new defect"));
  EXPECT_TRUE(holds(page, "<h3>1. new: words of four</h3>"));
  EXPECT_TRUE(holds(page, "<h3>2. in the base too: words of two</h3>"));
  EXPECT_TRUE(holds(page, "<li><b>fixed defect</b> words of one"));
  EXPECT_TRUE(holds(page, "<summary>Checks still broken: 3</summary>"));
  EXPECT_FALSE(holds(to_html(three_defects()), "than the base"));
}

TEST(SelfReportDiff, CommentsStaySmallWhateverChanged) {
  constexpr size_t kMost = 65536;
  Report before = three_defects(), after = before;
  for (int i = 0; i < 400; ++i) {
    const std::string tap = "layers." + std::to_string(i) + ".mlp.out";
    for (Report* report : {&before, &after}) {
      const Trust trust = report == &before ? Trust::fail : Trust::pass;
      report->verdicts.push_back(check(tap, Mode::staged, trust, 7));
      report->verdicts.back().case_name = std::string(60, 'c');
    }
    after.findings[0].defects.push_back(
        defect("x" + std::to_string(i) + std::string(290, '*'), "layers.0.ix.k", 1));
  }
  EXPECT_LT(diff_markdown(compare_reports(before, after)).size(), kMost);
  EXPECT_LT(diff_markdown(compare_reports(after, before)).size(), kMost);
  EXPECT_LT(to_markdown(after, {.link = "", .base = &before}).size(), kMost);
}

TEST(SelfReportDiff, EqualReportsAreNotWorse) {
  const ReportDiff diff = compare_reports(three_defects(), three_defects());
  EXPECT_FALSE(diff.worse());
  EXPECT_TRUE(diff.after_fails);
  EXPECT_EQ(diff.still.size(), 4u);
  EXPECT_TRUE(holds(diff_text(diff), "NOT WORSE | 4 still broken (5 checks in both)"));
}

}  // namespace
}  // namespace dsv32::harness
