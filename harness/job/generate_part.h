#pragma once

#include "harness/cases/candidate.h"
#include "harness/job/job.h"
#include "harness/report/report.h"

namespace dsv32::harness {

/// Judges a candidate of mode `generate`, each step on its own history; beside it, where the case
/// is one of the suite generate, its golden and our models.
void run_generate_candidate(const Job& job, const Candidate& candidate, Report& report);

}  // namespace dsv32::harness
