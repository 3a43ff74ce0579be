#pragma once

#include <string>

#include "src/io/io.h"
#include "src/io/trace/metadata.h"
#include "src/model/case.h"

/// Traces of mode `generate`. docs/formats.md 14.
namespace dsv32::io {

inline constexpr const char* kGenerate = "generate";

/// The metadata `decoding` of a trace of this mode. Throws Error (artefact) where it is not there,
/// or says what this case cannot do.
Decoding decoding_of(const Metadata& metadata, const Case& c, const std::string& where);
/// The inverse: {"eos":7,"steps":24}.
std::string decoding_json(const Decoding& decoding);

/// A tensor of this mode: gen.tokens, gen.logits, or a decision over the whole history. Throws
/// Error (artefact) for another one, and for a wrong shape or type.
void check_generated(const std::string& name, const TensorEntry& entry, const Case& c,
                     const std::string& where);

}  // namespace dsv32::io
