#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"
#include "src/io/io.h"
#include "src/model/case.h"
#include "src/model/objective.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32::harness {

/// A trace file to be judged, in the case that it names.
struct Candidate {
  std::filesystem::path path;
  Trace trace;
  Case the_case;
  Subject subject;   // "candidate fork.safetensors", a training against its golden
  std::string mode;  // "forward", "backward", ..., "train"
};

/// What a trace of this mode differentiates: its KL alone, else the LM loss.
Objective objective_of_mode(const std::string& mode);

/// Throws Error (artefact).
std::vector<Candidate> read_candidates(const std::vector<std::filesystem::path>& paths);

/// Throws Error (artefact) when the candidate ran on other weights.
void check_weights_identity(const Candidate& candidate, const WeightSource& weights);

/// Did it run to its end, and with the checkpoint's weights? Comes before any tap.
[[nodiscard]] std::vector<Verdict> verdicts_on_loading(const Candidate& candidate,
                                                       const io::CandidateNotes& notes);

}  // namespace dsv32::harness
