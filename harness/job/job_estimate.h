#pragma once

#include <string>

#include "harness/job/estimate.h"
#include "harness/job/job.h"

/// What a whole job costs.
namespace dsv32::harness {

/// Every case and training of a job. Reads the job's batch file for its sizes.
Estimate estimate_of(const Job& job);

/// What --dry-run prints: every case of the job, segment by segment where it is streamed, and the
/// whole.
std::string dry_run_text(const Job& job);

}  // namespace dsv32::harness
