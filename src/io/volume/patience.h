#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

/// Reads from volumes that falter: network and user-space file systems fail now and then, and the
/// same read goes well a moment later.
namespace dsv32::io {

/// How often a call that fails is made again: pauses grow by kPauseGrowth.
struct Patience {
  int tries = 4;
  std::chrono::milliseconds pause{200};
};
inline constexpr int kPauseGrowth = 4;

/// errno of a failure that may be over at the next try: EIO, EAGAIN, ESTALE, ETIMEDOUT, EREMOTEIO.
bool is_transient(int error);
/// errno that speaks of the volume and not of the file on it: the transient ones, and those of one
/// that is gone (ENOTCONN, ENODEV, ENXIO, EHOSTDOWN, ...).
bool is_of_volume(int error);

/// What came of a call: errno, 0 when it went well, and how many times it was made.
struct Outcome {
  int error = 0;
  int tries = 1;
};
/// Makes the call until it returns true, or leaves an errno that is not transient, or was made
/// often enough. EINTR does not count.
Outcome patiently(const std::function<bool()>& call, const Patience& patience = {});
/// "Input/output error, 4 times".
std::string reason(const Outcome& outcome);

/// A positioned read as pread(2): bytes, 0 at the end, or -1 with errno.
using ReadAt = std::function<ssize_t(uint64_t offset, void* out, size_t size)>;
/// Reads `size` bytes, less only at the end of the file: returns how many. Throws Error
/// (environment) that names `where` and the byte at which it ended.
size_t read_patiently(const ReadAt& read, uint64_t offset, void* out, size_t size,
                      const std::string& where, const Patience& patience = {});

}  // namespace dsv32::io
