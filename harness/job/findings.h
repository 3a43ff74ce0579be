#pragma once

#include <string>
#include <vector>

#include "harness/cases/diagnosis.h"
#include "harness/job/job.h"
#include "harness/judge/verdict.h"
#include "harness/report/report.h"

namespace dsv32::harness {

/// What the findings of one case, and of one training suite in it, are gathered from.
class Findings {
 public:
  Findings(const Job& job, Report& report, std::string case_name, std::string suite = "");

  /// Puts the verdicts that the job selected into the report; remembers one finding about the
  /// subject.
  void add(const std::string& subject, const std::vector<Verdict>& verdicts,
           const Diagnosis& diagnosis = {});
  /// Who is wrong: needs the answers about golden, reference and candidate together (DESIGN 3,
  /// arbitration). Moves the findings into the report.
  void settle();

 private:
  const Job& job_;
  Report& report_;
  std::string case_name_, suite_;
  std::vector<Finding> findings_;
};

}  // namespace dsv32::harness
