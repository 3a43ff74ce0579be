#pragma once

#include <string>
#include <vector>

#include "harness/cases/case_run.h"

namespace dsv32::harness {

/// Named causes of a failure, best first: another dialect that the subject matches from end to end,
/// then known bugs which, planted into the oracle, make the first failing tap agree. Empty:
/// unknown, which beats a wrong name.
std::vector<std::string> find_causes(const CaseRun& run, const JudgedTrace& judged,
                                     const std::vector<Verdict>& verdicts);

}  // namespace dsv32::harness
