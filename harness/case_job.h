#pragma once

#include <optional>

#include "golden/golden.h"
#include "harness/candidate.h"
#include "harness/case_run.h"
#include "harness/findings.h"
#include "harness/report.h"
#include "harness/runner.h"

namespace dsv32::harness {

/// The model's part of one case of a job: its golden, the reference in each dtype, the candidates.
class CaseJob {
 public:
  CaseJob(const Job& job, Case c, const Objective& objective, Report& report);

  void run_golden_and_references();
  void run_candidate(const Candidate& candidate);
  /// Who is wrong, once everybody was judged.
  void settle() { findings_.settle(); }

 private:
  std::optional<golden::Golden> load_golden();
  void judge_golden(const golden::Golden& golden, const ForcedTraces* shared);
  Subject reference_subject(DType dtype) const;
  std::vector<Verdict> reference_staged(DType dtype) const;
  void judge_reference(DType dtype, std::vector<Verdict> verdicts, const Trace& decisions,
                       const ForcedTraces& shared);
  Trace forced_reference(DType dtype, const Trace& decisions) const;

  const Job& job_;
  Report& report_;
  CaseRun run_;
  Findings findings_;
};

}  // namespace dsv32::harness
