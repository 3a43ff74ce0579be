#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

/// `weights copy`: a checkpoint from a slow volume to a fast one.
namespace dsv32::io {

/// How far a copy is. Bytes of all files.
struct CopyProgress {
  uint64_t bytes = 0;        // of all files
  uint64_t there = 0;        // written, also by earlier runs
  uint64_t checked = 0;      // read back and found right
  double rate = 0;           // bytes per second that are read from the source; 0: not known yet
  double seconds_left = -1;  // below 0: not known yet
};
/// "12.3 of 641.3 GiB copied, 9.1 checked, 210 MiB/s, 51:07 left".
std::string to_string(const CopyProgress& progress);

struct CopyOptions {
  int readers = 8;                     // threads; each holds one block
  uint64_t block = uint64_t{8} << 20;  // bytes
  /// Called once in so many milliseconds in the caller's thread; may throw to stop.
  std::chrono::milliseconds tick{100};
  std::function<void(const CopyProgress&)> progress = {};
};

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
