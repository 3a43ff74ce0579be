#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "src/io/io.h"

namespace dsv32::io {

/// Opens model.safetensors, or the shards of model.safetensors.index.json with every rule of the
/// index checked.
std::vector<SafetensorsFile> open_checkpoint_files(const std::filesystem::path& dir);

inline constexpr const char* kSingleFile = "model.safetensors";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";

}  // namespace dsv32::io
