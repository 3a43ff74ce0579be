#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

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

}  // namespace dsv32::io
