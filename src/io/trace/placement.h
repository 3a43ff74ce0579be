#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "src/io/io.h"
#include "src/io/trace/metadata.h"

namespace dsv32::io {

/// What the metadata of one rank's file say about its tensors.
class Placements {
 public:
  /// Reads `rank`, `world` and `placement` (docs/formats.md 4). Throws Error (artefact) for a rank
  /// outside of the world, and for a placement that is none.
  Placements(const Metadata& metadata, const std::string& where);

  int64_t rank() const { return rank_; }
  int64_t world() const { return world_; }
  /// Of a tensor: its own name's, else that of the longest pattern that fits; replicated without.
  Placement of(const std::string& tensor) const;

 private:
  int64_t rank_ = 0, world_ = 1;
  std::map<std::string, Placement> patterns_;
};

}  // namespace dsv32::io
