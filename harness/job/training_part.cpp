#include "harness/job/training_part.h"

#include <algorithm>
#include <chrono>

#include "golden/reader/training_golden.h"
#include "harness/job/findings.h"
#include "harness/job/memory.h"
#include "harness/training/suite.h"
#include "harness/training/train_candidate.h"

namespace dsv32::harness {
namespace {

using Clock = std::chrono::steady_clock;

const TrainingSuite& suite_of(const std::string& name) {
  for (const TrainingSuite& suite : training_suites()) {
    if (suite.name == name) return suite;
  }
  throw Error(ExitCode::internal, {.where = "training suite", .what = "unknown", .got = name});
}

/// The suite's verdicts in the order of their subjects, each subject named once.
void add_verdicts(Findings& findings, const Case& c, const std::string& suite,
                  std::vector<Verdict> verdicts) {
  std::vector<std::string> subjects;
  for (Verdict& v : verdicts) {
    v.suite = suite;
    v.case_name = c.name;
    if (std::find(subjects.begin(), subjects.end(), v.subject) == subjects.end())
      subjects.push_back(v.subject);
  }
  for (const std::string& subject : subjects) {
    std::vector<Verdict> theirs;
    std::copy_if(verdicts.begin(), verdicts.end(), std::back_inserter(theirs),
                 [&](const Verdict& v) { return v.subject == subject; });
    findings.add(subject, theirs);
  }
}

std::vector<Verdict> missing_goldens(const TrainingSuite& suite, const Case& c) {
  std::vector<Verdict> verdicts;
  for (const TrainingGoldenName& golden : suite.goldens) {
    if (golden.case_name != c.name || golden::training_exists(golden.suite, c.name)) continue;
    verdicts.push_back({.subject = "golden",
                        .tap = "golden file " + golden.suite + "." + c.name,
                        .trust = Trust::missing,
                        .note = "no golden of this suite and case; make it with "
                                "golden/make"});
  }
  return verdicts;
}

void note_cost(Report& report, const std::string& key, Clock::time_point start, double tokens) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  report.timing[key] = seconds;
  report.timing[key + " peak memory GiB"] = peak_memory_bytes() / kGiB;
  if (tokens > 0 && seconds > 0) report.timing[key + " tokens per second"] = tokens / seconds;
}

void run_suite(const Job& job, const Case& c, const TrainingSuite& suite, Report& report,
               Findings& findings) {
  reset_peak_memory();
  const auto start = Clock::now();
  const TrainingJob task{
      .the_case = c,
      .impls = job.impls,
      .settings = {.device = job.device, .progress = job.progress, .interrupted = job.interrupted}};
  TrainingResult result = suite.judge(task);
  note_cost(report, c.name + " " + suite.name, start, result.tokens);
  for (const auto& [figure, value] : result.figures)
    report.figures.push_back({c.name, suite.name, figure, value});
  add_verdicts(findings, c, suite.name, std::move(result.verdicts));
}

}  // namespace

void run_training_suite(const Job& job, const Case& c, const std::string& name, Report& report) {
  const TrainingSuite& suite = suite_of(name);
  Findings findings(job, report, c.name, name);
  const std::vector<Verdict> missing = missing_goldens(suite, c);
  if (missing.empty()) {
    run_suite(job, c, suite, report, findings);
  } else {
    add_verdicts(findings, c, name, missing);
  }
  findings.settle();
}

void run_train_candidate(const Job& job, const Candidate& candidate, Report& report) {
  const Case& c = candidate.the_case;
  const io::CandidateNotes notes = io::candidate_notes(candidate.trace, candidate.path.string());
  check_weights_identity(candidate, SyntheticWeights(c.seed, c.bias_offset));
  const std::string suite = golden_suite_of(candidate);
  std::vector<Verdict> verdicts = verdicts_on_loading(candidate, notes);
  if (!notes.failure) {
    for (Verdict& verdict : judge_train_candidate(candidate, suite))
      verdicts.push_back(std::move(verdict));
  }
  Findings findings(job, report, c.name, suite);
  for (Verdict& verdict : verdicts) verdict.subject = candidate.subject + " vs golden";
  add_verdicts(findings, c, suite, std::move(verdicts));
  findings.settle();
}

}  // namespace dsv32::harness
