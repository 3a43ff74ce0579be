#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "src/io/volume/copy_options.h"

/// `weights copy`: a checkpoint from a slow volume to a fast one.
namespace dsv32::io {

struct CopyReport {
  size_t files = 0;
  uint64_t bytes = 0;                 // of all files
  uint64_t copied = 0;                // by this run
  size_t repaired = 0;                // blocks that the disk did not give back as they were written
  double copying_seconds = 0;         // until the last block was there
  double seconds = 0;                 // until the last one was read back
  std::vector<std::string> left_out;  // names of the source that are no part of the copy
  std::string text() const;           // for people
};

/// Copies a checkpoint: its weights' files as open_checkpoint_files finds them, and the small files
/// beside them (config.json, tokenizer, ...). Several threads read blocks; a block's digest is
/// taken as it is read, and compared with that of the same block read back from the disk. Files
/// take their names in `to` when all of them are complete and right, that which makes a checkpoint
/// of them last. What a stopped run left in to/.dsv32-copy is gone on with, and files that are
/// there are not copied again unless the source, or the copy, has changed since. Throws Error:
/// artefact where the source is no sound checkpoint or has links out of its folder (but those of a
/// Hugging Face cache), usage where `to` is in `from`, or holds files of other origin, environment
/// where room is missing or a volume fails.
CopyReport copy_checkpoint(const std::filesystem::path& from, const std::filesystem::path& to,
                           const CopyOptions& options = {});

}  // namespace dsv32::io
