#include "harness/job/generate_part.h"

#include <algorithm>

#include "harness/cases/generated.h"
#include "harness/job/findings.h"
#include "harness/job/provenance.h"
#include "harness/job/weights.h"
#include "harness/training/suite.h"

namespace dsv32::harness {
namespace {

constexpr char kSuite[] = "generate";

/// A case of the suite, decoded as its golden was.
bool has_witnesses(const Job& job, const Case& c) {
  if (job.weights != "synthetic" || job.batch_file) return false;
  for (const TrainingSuite& suite : training_suites()) {
    if (suite.name != kSuite) continue;
    return std::any_of(suite.cases.begin(), suite.cases.end(), [&](const std::string& name) {
      const Case& listed = io::find_case(name);
      return io::case_json(listed) == io::case_json(c) && listed.decoding == c.decoding;
    });
  }
  return false;
}

void add_witnesses(const Job& job, const Case& c, Findings& findings) {
  TrainingResult result = judge_generate(
      {.the_case = c,
       .impls = job.impls,
       .settings = {
           .device = job.device, .progress = job.progress, .interrupted = job.interrupted}});
  findings.add(std::move(result.verdicts));
}

DecodingVerdicts judged(const Job& job, const Candidate& candidate, const WeightSource& weights) {
  const Case& c = candidate.the_case;
  const DType dtype = parse_dtype(candidate.trace.metadata.at("dtype"));
  const GenerateRun run(
      c, io::batch_of_case(c, job.batch_file, candidate.path.string()), weights,
      {.device = job.device, .progress = job.progress, .interrupted = job.interrupted});
  return run.judge({.subject = candidate.subject,
                    .dtype = stored_type(dtype),
                    .dialect = in_dtype(find_dialect(job.dialect), dtype),
                    .trace = &candidate.trace});
}

void run_candidate(const Job& job, const Candidate& candidate, Report& report, Findings& findings) {
  const io::CandidateNotes notes = io::candidate_notes(candidate.trace, candidate.path.string());
  report.judged.push_back(provenance_of(candidate, notes));
  const auto weights = open_weights(job.weights, candidate.the_case);
  check_weights_identity(candidate, *weights);
  std::vector<Verdict> verdicts = verdicts_on_loading(candidate, notes);
  Diagnosis diagnosis;
  if (!notes.failure) {
    DecodingVerdicts found = judged(job, candidate, *weights);
    append(verdicts, std::move(found.verdicts));
    diagnosis.causes = std::move(found.causes);
    for (const std::string& tap : notes.missing_taps)
      report.not_tested.push_back(candidate.subject.label + ": " + tap +
                                  " was not found in that implementation");
  }
  findings.add(candidate.subject, std::move(verdicts), diagnosis);
}

}  // namespace

void run_generate_candidates(const Job& job, const std::vector<const Candidate*>& candidates,
                             Report& report) {
  Findings findings(job, report, candidates.front()->the_case.name, kSuite);
  const auto listed = std::find_if(candidates.begin(), candidates.end(), [&](const Candidate* c) {
    return has_witnesses(job, c->the_case);
  });
  if (listed != candidates.end()) add_witnesses(job, (*listed)->the_case, findings);
  for (const Candidate* candidate : candidates) run_candidate(job, *candidate, report, findings);
  findings.settle();
}

}  // namespace dsv32::harness
