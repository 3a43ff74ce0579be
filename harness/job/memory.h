#pragma once

#include "src/model/case.h"

namespace dsv32::harness {

/// Throws Error (environment) when the attention matrices of a case cannot be held whole.
void refuse_what_does_not_fit(const Case& c);

/// Starts a new high-water mark of this process's memory, where the kernel allows it.
void reset_peak_memory();
/// The high-water mark since then, else since the start; 0 where it cannot be read.
double peak_memory_bytes();

inline constexpr double kGiB = 1024.0 * 1024 * 1024;

}  // namespace dsv32::harness
