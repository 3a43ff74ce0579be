#include "harness/job/findings.h"

#include <algorithm>

#include "harness/judge/judge.h"
#include "harness/report/groups.h"
#include "src/io/print.h"
#include "src/model/trace.h"

namespace dsv32::harness {
namespace {

bool contains(const std::vector<std::string>& list, const std::string& word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

std::string headline(const Verdict& failure) {
  std::string text =
      "first divergence " + failure.tap + " (" + std::string(to_string(failure.mode)) + ")";
  if (const Measure* worst = worst_measure(failure)) {
    text += ": " + worst->metric + " " + io::number(worst->measured) + ", limit " +
            io::number(worst->limit);
  }
  return text;
}

/// The taps of the chosen suites: gradients belong to `backward`, everything else to `forward`.
bool selected(const Job& job, const Verdict& verdict) {
  const bool gradient = verdict.tap.rfind("grad.", 0) == 0;
  const bool of_model = verdict.suite.empty() && parse_tap(verdict.tap);
  if (of_model && !contains(job.suites, gradient ? "backward" : "forward")) return false;
  return job.filter.empty() || check_path(verdict).find(job.filter) != std::string::npos;
}

}  // namespace

Findings::Findings(const Job& job, Report& report, std::string case_name, std::string suite)
    : job_(job), report_(report), case_name_(std::move(case_name)), suite_(std::move(suite)) {}

void Findings::add(const std::string& subject, const std::vector<Verdict>& verdicts,
                   const Diagnosis& diagnosis) {
  std::vector<Verdict> kept;
  std::copy_if(verdicts.begin(), verdicts.end(), std::back_inserter(kept),
               [&](const Verdict& v) { return selected(job_, v); });
  Finding finding{.case_name = case_name_,
                  .subject = subject,
                  .causes = diagnosis.causes,
                  .suite = suite_,
                  .defects = diagnosis.defects,
                  .profile = diagnosis.profile};
  if (const Verdict* failure = first_failure(kept)) {
    finding.first_tap = failure->tap;
    finding.headline =
        diagnosis.defects.empty() ? headline(*failure) : headline_of(diagnosis.defects.front());
  }
  report_.verdicts.insert(report_.verdicts.end(), kept.begin(), kept.end());
  findings_.push_back(finding);
}

void Findings::settle() {
  const auto failed = [&](const std::string& start) {
    return std::any_of(findings_.begin(), findings_.end(), [&](const Finding& f) {
      return f.subject.rfind(start, 0) == 0 && !f.first_tap.empty();
    });
  };
  const bool golden_present = std::any_of(findings_.begin(), findings_.end(),
                                          [](const Finding& f) { return f.subject == "golden"; });
  const bool golden_ok = !failed("golden"), reference_ok = !failed("reference");
  for (Finding& finding : findings_) {
    std::optional<bool> candidate_ok;
    const bool optimized = finding.subject.starts_with("optimized");
    if (optimized || finding.subject.starts_with("candidate"))
      candidate_ok = finding.first_tap.empty();
    if (finding.first_tap.empty()) continue;
    finding.fault = arbitrate(golden_ok, golden_present, reference_ok, candidate_ok);
    if (optimized && finding.fault == Fault::candidate) finding.fault = Fault::optimized;
  }
  report_.findings.insert(report_.findings.end(), findings_.begin(), findings_.end());
  findings_.clear();
}

}  // namespace dsv32::harness
