#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "harness/judge/comparison.h"
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
  /// Of one that came as the files of several ranks, `path` being the lowest rank's.
  RankPieces pieces = {};
  RankSums sums = {};
  std::vector<Verdict> world = {};  // what the ranks have in common
};

/// What a trace of this mode differentiates: its KL alone, else the LM loss.
Objective objective_of_mode(const std::string& mode);

/// A folder stands for the trace files in it, *.safetensors. Throws Error (artefact) for one
/// without any.
std::vector<std::filesystem::path> candidate_files(const std::vector<std::filesystem::path>& given);

/// Files of candidate_files. Files of ranks of one world, in one folder, are one
/// candidate. Throws Error (artefact).
std::vector<Candidate> read_candidates(const std::vector<std::filesystem::path>& paths);

/// Throws Error (artefact) when the candidate ran on other weights.
void check_weights_identity(const Candidate& candidate, const WeightSource& weights);

/// Did it run to its end, and with the checkpoint's weights? Comes before any tap.
[[nodiscard]] std::vector<Verdict> verdicts_on_loading(const Candidate& candidate,
                                                       const io::CandidateNotes& notes);

}  // namespace dsv32::harness
