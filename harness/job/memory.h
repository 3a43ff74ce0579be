#pragma once

namespace dsv32::harness {

/// What this process can still get: the machine's memory, a container's or `ulimit -v`, whichever
/// is least; 0 where it cannot be read.
double available_memory_bytes();

/// Starts a new high-water mark of this process's memory, where the kernel allows it.
void reset_peak_memory();
/// The high-water mark since then, else since the start; 0 where it cannot be read.
double peak_memory_bytes();

inline constexpr double kGiB = 1024.0 * 1024 * 1024;

}  // namespace dsv32::harness
