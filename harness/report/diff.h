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

std::string diff_text(const ReportDiff& diff);
/// For a comment; begins with kDiffMarker. < 64 KiB.
std::string diff_markdown(const ReportDiff& diff);

inline constexpr const char* kDiffMarker = "<!-- dsv32-verify diff -->";

}  // namespace dsv32::harness
