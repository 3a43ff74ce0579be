#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

/// `weights check --time`: is a copy of a checkpoint on a faster volume worth it?
namespace dsv32::io {

/// How much is read, at the most, and for how long, of each way of reading.
struct TimingLimits {
  uint64_t range = uint64_t{4} << 20;  // bytes of one read
  uint64_t bytes = uint64_t{256} << 20;
  std::chrono::milliseconds time{5000};
  int readers = 8;
};

/// Bytes per second.
struct ReadingTimes {
  std::filesystem::path from, fast;
  uint64_t bytes = 0;     // of the checkpoint
  uint64_t sampled = 0;   // bytes that were read
  double one_reader = 0;  // from the volume itself, one read after the other
  double parallel = 0;    // likewise, by several threads
  double copy = 0;        // by several threads, from a copy in `fast`
  double write = 0;       // into `fast`
  uint64_t room = 0;      // free bytes there
  int readers = 0;

  double copy_seconds() const;
  /// Readings of all of it after which a copy has paid for itself; below 0: never.
  double pays_after() const;
  std::string text() const;  // for people, with advice
};

/// Reads samples spread over all files of a checkpoint in three ways, each from other places, and
/// none from the system's memory. `fast`: an existing folder on the volume that may get a copy;
/// what is written there is gone afterwards. `progress` is called now and then and may throw to
/// stop. Throws Error.
ReadingTimes time_reading(const std::filesystem::path& dir, const std::filesystem::path& fast,
                          const TimingLimits& limits = {},
                          const std::function<void(const std::string&)>& progress = {});

}  // namespace dsv32::io
