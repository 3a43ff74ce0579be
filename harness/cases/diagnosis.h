#pragma once

#include <string>
#include <vector>

#include "harness/cases/case_run.h"
#include "harness/judge/defect.h"

namespace dsv32::harness {

/// What an engine does otherwise than it claims, read from its failing taps.
struct Diagnosis {
  std::vector<Defect> defects;      // the gravest first, then in execution order
  std::string profile;              // "spec-1 + {k-norm-eps, group-fill-zero}"; "" without a defect
  std::vector<std::string> causes;  // a line each: a dialect that is all of it, then the defects
};

/// Every staged failure is an origin. The smallest set of toggles is sought with which the
/// reference, fed the subject's own inputs, gives all failing taps up to rounding and leaves alone
/// those that pass; then what each of them alone does to the model. What nothing explains is listed
/// as such. A failing gradient is looked into once the forward taps are explained.
Diagnosis diagnose(const CaseRun& run, const JudgedTrace& judged,
                   const std::vector<Verdict>& verdicts);

}  // namespace dsv32::harness
