#pragma once

#include <memory>
#include <string>

#include "src/model/weights.h"

namespace dsv32::harness {

/// The weights of a case that `--weights` names: `synthetic` (the case's own), `synthetic:SEED`,
/// `synthetic-fp8`, `synthetic-fp8:SEED` or a checkpoint folder. `layers`: those of `--layers`,
/// which a folder must have; "" means all of the model. Throws Error (artefact).
std::unique_ptr<const WeightSource> open_weights(const std::string& source, const Case& c,
                                                 const std::string& layers = "");

}  // namespace dsv32::harness
