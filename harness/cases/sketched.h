#pragma once

#include <memory>
#include <string>
#include <vector>

#include "harness/cases/case_run.h"
#include "harness/cases/diagnosis.h"

/// Staged judgement of sketched taps (docs/formats.md 4): ops that work row by row, on the rows
/// that are there.
namespace dsv32::harness {

/// Staged verdicts of the sketched taps whose ops work row by row and whose inputs are there, whole
/// or for the same rows; in execution order. `judged.trace` has the sketches.
std::vector<Verdict> judge_staged_rows(const CaseRun& run, const JudgedTrace& judged);

/// As `diagnose`, of a trace that may have sketched taps: those by the rows that are there, whole
/// ones as ever. `verdicts` of both.
Diagnosis diagnose_sketched(const CaseRun& run, const JudgedTrace& judged,
                            const std::vector<Verdict>& verdicts);

}  // namespace dsv32::harness
