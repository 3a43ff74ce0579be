#pragma once

#include <string>
#include <vector>

#include "harness/report/report.h"

/// Two reports against each other: base and head, two releases, two engines.
namespace dsv32::harness {

/// A check that is another one now.
struct ChangedCheck {
  std::string group;   // "tiny-wide candidate"
  std::string check;   // "layers.0.ix.q (staged)"
  std::string before;  // "pass", "fail, 612 of limit", "not there"
  std::string after;
};

/// A defect that came, went or stayed; see Problem.
struct ChangedDefect {
  std::string words;
  std::string before, after;  // how grave; "" where it is not there
};

struct ReportDiff {
  std::string before, after;  // the verdict of each, in one sentence
  std::vector<ChangedDefect> fixed_defects, new_defects, left_defects;
  std::vector<bool> is_new;  // of each defect after, in the order of problems_of
  std::vector<ChangedCheck> fixed, broken;
  std::vector<ChangedCheck> still;     // fails in both, as much as before
  std::vector<ChangedCheck> changed;   // fails in both, and is off by another amount
  std::vector<ChangedCheck> untested;  // ran before, tells nothing now
  std::vector<ChangedCheck> tested;    // told nothing before, passes now
  size_t common = 0;                   // checks that ran in both
  bool after_fails = false;

  /// Something that was right is wrong, or nobody knows any more.
  bool worse() const { return !broken.empty() || !untested.empty() || !new_defects.empty(); }
};

/// Checks are matched by case, suite, party, tap and mode; by label too where a case has several
/// subjects of a party.
ReportDiff compare_reports(const Report& before, const Report& after);

/// What happened, with the checks that it happened to.
struct Chapter {
  const char* title;
  const std::vector<ChangedCheck>* checks;
};
std::vector<Chapter> chapters_of(const ReportDiff& diff);
struct DefectChapter {
  const char* title;
  const std::vector<ChangedDefect>* defects;
};
std::vector<DefectChapter> chapters_of_defects(const ReportDiff& diff);
/// How grave it is, and was where that differs.
std::string change_text(const ChangedDefect& defect);

/// "Worse than the base: 2 new defects, 1 left; checks: 14 broken, 3 fixed."
std::string diff_sentence(const ReportDiff& diff);
std::string diff_text(const ReportDiff& diff);
/// For a comment; begins with kDiffMarker. < 64 KiB.
std::string diff_markdown(const ReportDiff& diff);
/// Its defects and checks alone, within a number of bytes.
std::string diff_details(const ReportDiff& diff, size_t bytes);

inline constexpr const char* kDiffMarker = "<!-- dsv32-verify diff -->";

}  // namespace dsv32::harness
