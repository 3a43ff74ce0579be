#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/cases/case_run.h"
#include "harness/judge/defect.h"

namespace dsv32::harness {

/// Plants one defect after the other, each alone, into the free float64 run of the reference.
class SeverityProbe {
 public:
  SeverityProbe(const CaseRun& run, const JudgedTrace& judged) : run_(run), judged_(judged) {}

  /// Of a model that computes `dialect`, in these layers only (empty: in all).
  Severity of_dialect(const Dialect& dialect, const std::vector<int64_t>& layers);
  /// Of taps that nothing explains: the subject's own values stand in for the reference's.
  Severity of_taps(const std::vector<std::string>& taps);

 private:
  Severity against_base(const Trace& changed);
  const Trace& base();

  const CaseRun& run_;
  const JudgedTrace& judged_;
  std::unique_ptr<Trace> base_;
};

}  // namespace dsv32::harness
