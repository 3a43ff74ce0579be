#pragma once

#include <string>
#include <vector>

#include "harness/report/report.h"

namespace dsv32::suites {

/// The job of one suite on the case named by `--case`, run once per program: golden, and these
/// implementations in float32 and bfloat16.
const harness::Report& case_report(const std::string& suite,
                                   const std::vector<std::string>& impls = {"reference"});

/// The verdicts about the subject of this label ("golden", "reference float32", ...).
std::vector<harness::Verdict> verdicts_of(const harness::Report& report,
                                          const std::string& subject);

/// All verdicts that are neither passed nor skipped, a line each, for a failure message.
std::string complaints(const std::vector<harness::Verdict>& verdicts);

}  // namespace dsv32::suites
