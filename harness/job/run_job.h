#pragma once

#include <string>

#include "harness/cases/case_run.h"
#include "harness/job/job.h"
#include "harness/report/report.h"
#include "src/model/case.h"
#include "src/model/dialect.h"
#include "src/model/trace.h"

/// The face of harness/job.
namespace dsv32::harness {

/// Runs a job and returns its report. Errors of one candidate become findings of the report where
/// docs/architecture.md 4 says so; wrong input throws Error.
Report run_job(const Job& job);

/// A trace in the exchange format, for `dump`. `weights`: as `--weights` says; a training has the
/// case's own. `slopes`: with the gradients by taps.
Trace make_trace(const Case& c, const std::string& impl, DType dtype, const std::string& mode,
                 const Dialect& dialect, const RunSettings& settings,
                 const std::string& weights = "synthetic", bool slopes = false);

/// The same with every tap sketched (docs/formats.md 4); decisions and scalars stay whole.
Trace sketched(const Trace& trace, const Case& c);

}  // namespace dsv32::harness
