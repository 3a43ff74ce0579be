#pragma once

#include <string>
#include <vector>

#include "harness/report/report.h"

/// What lies between two reports about the same checks: before a change and after it.
namespace dsv32::harness {

/// One thing that is wrong in one of the reports or in both.
struct Change {
  std::string words;               // "k_norm with eps 1e-5 instead of 1e-6"
  std::vector<std::string> cases;  // where it shows
};

struct Changes {
  std::vector<Change> fixed, broken, still;  // defects, each in the order of its report
  /// Checks of which there is only one answer now: failed before, fails now, fails in both.
  size_t checks_fixed = 0, checks_broken = 0, checks_still = 0;
  std::vector<std::string> untested;  // checks that had an answer before and have none now
};

/// Defects over all cases of a fork, matched by name; check by check: compare_reports of diff.h.
Changes defects_changed(const Report& base, const Report& head);

/// A few lines for a terminal.
std::string to_text(const Changes& changes);
/// A section for a pull request.
std::string to_markdown(const Changes& changes);

}  // namespace dsv32::harness
