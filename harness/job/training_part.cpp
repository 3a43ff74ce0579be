#include "harness/job/training_part.h"

#include <algorithm>
#include <chrono>

#include "golden/reader/training_golden.h"
#include "harness/job/findings.h"
#include "harness/job/memory.h"
#include "harness/job/provenance.h"
#include "harness/training/suite.h"
#include "harness/training/train_candidate.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

using Clock = std::chrono::steady_clock;

const TrainingSuite& suite_of(const std::string& name) {
  for (const TrainingSuite& suite : training_suites()) {
    if (suite.name == name) return suite;
  }
  throw Error(ExitCode::internal, {.where = "training suite", .what = "unknown", .got = name});
}

std::vector<Verdict> missing_goldens(const TrainingSuite& suite, const Case& c) {
  std::vector<Verdict> verdicts;
  for (const TrainingGoldenName& golden : suite.goldens) {
    if (golden.case_name != c.name || golden::training_exists(golden.suite, c.name)) continue;
    verdicts.push_back({.subject = {.party = Party::golden, .label = "golden"},
                        .tap = rule_name("golden.file", golden.suite),
                        .trust = Trust::missing,
                        .note = "no golden of this suite and case; make it with "
                                "golden/make"});
  }
  return verdicts;
}

Cost cost_of(const Case& c, const TrainingSuite& suite, Clock::time_point start, double tokens) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return {.case_name = c.name,
          .suite = suite.name,
          .seconds = seconds,
          .tokens_per_second = seconds > 0 ? tokens / seconds : 0,
          .peak_gib = peak_memory_bytes() / kGiB};
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
  report.costs.push_back(cost_of(c, suite, start, result.tokens));
  for (const auto& [figure, value] : result.figures)
    report.figures.push_back({c.name, suite.name, figure, value});
  findings.add(std::move(result.verdicts));
}

}  // namespace

void run_training_suite(const Job& job, const Case& c, const std::string& name, Report& report) {
  const TrainingSuite& suite = suite_of(name);
  Findings findings(job, report, c.name, name);
  std::vector<Verdict> missing = missing_goldens(suite, c);
  const auto tell_digest = [&](const std::string& full) {
    const std::string digest = golden_digest(full);
    if (!digest.empty()) report.environment["golden " + full] = "sha256 " + digest;
  };
  for (const TrainingGoldenName& golden : suite.goldens)
    if (golden.case_name == c.name) tell_digest(golden.suite + "." + c.name);
  if (suite.goldens.empty()) tell_digest(name + "." + c.name);  // of decoding: no training golden
  if (missing.empty()) {
    run_suite(job, c, suite, report, findings);
  } else {
    findings.add(std::move(missing));
  }
  findings.settle();
}

void run_train_candidate(const Job& job, const Candidate& candidate, Report& report) {
  const Case& c = candidate.the_case;
  const io::CandidateNotes notes = io::candidate_notes(candidate.trace, candidate.path.string());
  report.judged.push_back(provenance_of(candidate, notes));
  check_weights_identity(candidate, SyntheticWeights(c.seed, c.bias_offset));
  const std::string suite = golden_suite_of(candidate);
  std::vector<Verdict> verdicts = verdicts_on_loading(candidate, notes);
  StepUpdates judged;
  if (!notes.failure) judged = judge_train_candidate(candidate, suite);
  append(verdicts, std::move(judged.verdicts));
  Findings findings(job, report, c.name, suite);
  findings.add(candidate.subject, std::move(verdicts), std::move(judged.diagnosis));
  findings.settle();
}

}  // namespace dsv32::harness
