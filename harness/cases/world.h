#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/comparison.h"
#include "harness/judge/verdict.h"
#include "src/io/io.h"
#include "src/model/case.h"

namespace dsv32::harness {

/// One rank's file.
struct RankFile {
  std::filesystem::path path;
  io::TracePart part;
};

/// The files of one world put together.
struct JoinedWorld {
  Trace trace;                    // whole, with the metadata of the lowest rank
  RankPieces pieces;              // of the tensors that were in pieces
  RankSums sums;                  // of those that are sums, what each rank handed in
  std::vector<Verdict> verdicts;  // one for each rank: what it has in common with others is theirs
};

/// Sums what is partial, puts pieces in their places, and holds replicas against each other: the
/// value that most ranks have counts, the lowest rank's where none has most. Decisions must be
/// equal, values within what two correct runs differ by; rows of padding count in none. A tensor
/// may be on some ranks only (pipeline stages). Throws Error (artefact) where ranks are missing or
/// there twice, where their metadata or placements disagree, and where pieces overlap or leave
/// gaps.
JoinedWorld join_world(std::vector<RankFile> files, const Case& c, const Subject& subject);

}  // namespace dsv32::harness
