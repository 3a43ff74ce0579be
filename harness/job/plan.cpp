#include "harness/job/plan.h"

#include <algorithm>

#include "src/io/io.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

[[noreturn]] void refuse_case(const Candidate& candidate, const std::string& what,
                              const std::string& expected, const std::string& got) {
  throw Error(
      ExitCode::artefact,
      {.where = candidate.path.string(),
       .what = what,
       .expected = expected,
       .got = got,
       .hint = "a candidate brings its own case; leave --case, --config, --seed and --batch away"});
}

void check_agreement(const Job& job, const Candidate& candidate) {
  const Case& c = candidate.the_case;
  if (job.seed && *job.seed != c.seed)
    refuse_case(candidate, "seed", std::to_string(*job.seed), std::to_string(c.seed));
  if (job.batch_file && c.batch.empty())
    refuse_case(candidate, "batch", job.batch_file->string(), "none: the case's own batch");
  if (job.cases.empty()) return;
  const bool listed = std::any_of(job.cases.begin(), job.cases.end(), [&](const Case& asked) {
    return io::case_json(asked) == io::case_json(c);
  });
  if (!listed)
    refuse_case(candidate, "case", job.cases.front().name + (job.cases.size() > 1 ? ", ..." : ""),
                c.name);
}

/// The entry of a case and objective, a new one where there is none.
PlannedCase& entry(std::vector<PlannedCase>& cases, const Case& c,
                   const Objective& objective = {}) {
  const auto found = std::find_if(cases.begin(), cases.end(), [&](const PlannedCase& known) {
    return io::case_json(known.the_case) == io::case_json(c) &&
           known.the_case.mask_given == c.mask_given && known.objective == objective;
  });
  return found != cases.end()
             ? *found
             : cases.emplace_back(PlannedCase{.the_case = c, .objective = objective});
}

}  // namespace

std::vector<PlannedCase> plan(const Job& job, const std::vector<Candidate>& candidates) {
  std::vector<PlannedCase> cases;
  if (candidates.empty()) {
    for (Case c : job.cases) {
      if (job.seed) c.seed = *job.seed;
      entry(cases, c).model = true;
    }
    for (const TrainingTask& task : job.training)
      entry(cases, task.the_case).training.push_back(task.suite);
  }
  for (const Candidate& candidate : candidates) {
    check_agreement(job, candidate);
    PlannedCase& planned = entry(cases, candidate.the_case, objective_of_mode(candidate.mode));
    if (candidate.mode == "train") {
      planned.trained.push_back(&candidate);
      continue;
    }
    if (candidate.mode == "generate") {
      planned.generated.push_back(&candidate);
      continue;
    }
    planned.model = true;
    planned.candidates.push_back(&candidate);
  }
  return cases;
}

}  // namespace dsv32::harness
