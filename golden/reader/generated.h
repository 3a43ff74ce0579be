#pragma once

#include <string>

#include "golden/reader/golden.h"
#include "src/model/case.h"

/// Goldens of greedy decoding: `generate.CASE.h5`, kind `generate`. Layout: docs/formats.md 14.
namespace dsv32::golden {

inline constexpr const char* kGeneratedKind = "generate";
inline constexpr const char* kGeneratedPrefix = "generate.";

/// Reads the bytes whose hash was checked. The trace has gen.tokens, gen.logits and the decisions
/// over the whole history. Throws Error (artefact).
Golden load_generated(const ManifestEntry& entry, std::string bytes, const std::string& where);

}  // namespace dsv32::golden
