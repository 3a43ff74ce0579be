#pragma once

#include <string>

#include "golden/reader/golden.h"
#include "harness/cases/candidate.h"
#include "harness/report/report.h"
#include "src/io/io.h"

/// What was judged, and by what, in facts that a report keeps.
namespace dsv32::harness {

/// The digest of a candidate's file and what the file says of itself.
Provenance provenance_of(const Candidate& candidate, const io::CandidateNotes& notes);
/// The digest of a golden and who made it.
Provenance provenance_of(const golden::Golden& golden, const Subject& subject);
/// Data folder, torch and its arithmetic, device: what the judge itself ran on.
void tell_environment(const std::string& device, Report& report);
/// The digest of a golden by its manifest; "" where it is not listed.
std::string golden_digest(const std::string& name);

}  // namespace dsv32::harness
