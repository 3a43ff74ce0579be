#pragma once

#include <string>

#include "harness/cases/candidate.h"
#include "harness/job/job.h"
#include "harness/report/report.h"

namespace dsv32::harness {

/// Runs one training suite on one of its cases: its verdicts, findings, figures and cost into the
/// report. A golden that is not there is a `missing` check, and the suite does not run.
void run_training_suite(const Job& job, const Case& c, const std::string& suite, Report& report);

/// Judges a candidate of mode `train`.
void run_train_candidate(const Job& job, const Candidate& candidate, Report& report);

}  // namespace dsv32::harness
