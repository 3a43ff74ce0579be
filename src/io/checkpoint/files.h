#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "src/io/io.h"

namespace dsv32::io {

/// The files of a checkpoint.
struct CheckpointFiles {
  std::vector<SafetensorsFile> files;
  /// Above 1: file r is the part of rank r, as the inference demo shares a model out.
  int64_t ranks = 1;
};

/// Opens model.safetensors, or the shards of model.safetensors.index.json with every rule of the
/// index checked, or the demo's model{rank}-mp{ranks}.safetensors. What is wrong with any of the
/// files comes in one Error.
CheckpointFiles open_checkpoint_files(const std::filesystem::path& dir);

/// "model0-mp8.safetensors".
std::string demo_shard_name(int64_t rank, int64_t ranks);

inline constexpr const char* kSingleFile = "model.safetensors";
inline constexpr const char* kIndexFile = "model.safetensors.index.json";

}  // namespace dsv32::io
