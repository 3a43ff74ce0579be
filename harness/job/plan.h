#pragma once

#include <string>
#include <vector>

#include "harness/cases/candidate.h"
#include "harness/job/job.h"

namespace dsv32::harness {

/// What a job does in one case.
struct PlannedCase {
  Case the_case;
  Objective objective = {};           // of the model's part
  bool model = false;                 // golden and reference, forward and backward
  std::vector<std::string> training;  // suites, in running order
  std::vector<const Candidate*> candidates;
  std::vector<const Candidate*> trained = {};    // candidates of mode `train`
  std::vector<const Candidate*> generated = {};  // of mode `generate`
};

/// Cases of the job, those of its training suites, and those that candidates bring. Throws Error
/// (artefact) when a candidate contradicts the job.
std::vector<PlannedCase> plan(const Job& job, const std::vector<Candidate>& candidates);

}  // namespace dsv32::harness
