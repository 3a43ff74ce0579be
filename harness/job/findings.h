#pragma once

#include <string>
#include <vector>

#include "harness/cases/diagnosis.h"
#include "harness/job/job.h"
#include "harness/job/witnesses.h"
#include "harness/judge/verdict.h"
#include "harness/report/report.h"

namespace dsv32::harness {

/// What was found in one case, or by one training suite in it: verdicts and findings, subject by
/// subject. The one place where a verdict gets its case and its suite.
class Findings {
 public:
  Findings(const Job& job, Report& report, std::string case_name, std::string suite = "");

  /// Keeps the verdicts about a subject that the job selected, and what explains its failures.
  void add(const Subject& subject, std::vector<Verdict> verdicts, const Diagnosis& diagnosis = {});
  /// Keeps the verdicts of a training suite, each about the subject that it names.
  void add(std::vector<Verdict> verdicts);
  /// What is known so far about golden and own models.
  std::vector<Witness> witnesses() const;
  /// Takes an earlier run's word for who of them is right.
  void recall(const std::vector<Witness>& witnesses);
  /// Says who is wrong, which needs the answers about golden, reference and candidate together
  /// (docs/architecture.md 3, arbitration), and moves everything into the report.
  void settle();

 private:
  void mark_unchecked();
  /// One subject and all that is known about it.
  struct Entry {
    Finding finding;
    std::vector<Verdict> verdicts;
    bool failed() const { return !finding.first_tap.empty(); }
  };
  Entry& entry_of(const Subject& subject);
  bool failed(Party party) const;

  const Job& job_;
  Report& report_;
  std::string case_name_, suite_;
  std::vector<Entry> entries_;
  std::vector<Witness> recalled_;
};

}  // namespace dsv32::harness
