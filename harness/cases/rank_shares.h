#pragma once

#include <vector>

#include "harness/cases/case_run.h"

namespace dsv32::harness {

/// Says of failing sums over ranks whose summand is wrong, and how, where it shows what each rank's
/// should be: of the routed experts when the ranks split the experts, of the attention's output
/// when they split the heads, each in blocks (experts also one by one in turn). That they do is
/// told from the ranks whose summands are right: at least half. Up to 16 ranks.
void tell_wrong_summands(const CaseRun& run, const JudgedTrace& judged,
                         std::vector<Verdict>& staged);

}  // namespace dsv32::harness
