#pragma once

#include <map>
#include <optional>
#include <string>

#include "src/io/io.h"

namespace dsv32::io {

/// "logits#rows" is the part `rows` of the tap `logits`; nullopt for a tensor that is no part.
struct SketchPart {
  std::string tap, part;
};
std::optional<SketchPart> sketch_part(const std::string& tensor);

/// The sketched taps of a trace file (docs/formats.md 4), every part checked against the shape of
/// its tap in the case. Throws Error (artefact).
std::map<std::string, TapSketch> read_sketches(const SafetensorsFile& file, const Case& c);

/// The tensors of sketches as a trace file holds them, by name.
std::map<std::string, HostTensor> sketch_tensors(const std::map<std::string, TapSketch>& sketches);

}  // namespace dsv32::io
