#pragma once

#include <vector>

#include "harness/cases/candidate.h"
#include "harness/job/job.h"
#include "harness/report/report.h"

namespace dsv32::harness {

/// Judges the candidates of mode `generate` of one case, each step on its own history; beside them,
/// where the suite generate decodes the case as one of them did, its golden and our models.
void run_generate_candidates(const Job& job, const std::vector<const Candidate*>& candidates,
                             Report& report);

}  // namespace dsv32::harness
