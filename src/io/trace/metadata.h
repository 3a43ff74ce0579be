#pragma once

#include <map>
#include <string>

#include "src/model/case.h"

namespace dsv32::io {

using Metadata = std::map<std::string, std::string>;

/// Checks the metadata of a trace file and gives the keys that are not there their defaults
/// (docs/formats.md 4); `mask`, `weights` and `layers` are the case's. Throws Error (artefact).
Metadata checked_metadata(const Metadata& stored, const std::string& where);

}  // namespace dsv32::io
