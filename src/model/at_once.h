#pragma once

#include <cstddef>
#include <functional>

namespace dsv32 {

/// Threads that computing may take: OMP_NUM_THREADS, else one for each processor.
int processors();

/// Threads for what waits for a volume rather than for a processor.
constexpr int kVolumeThreads = 8;

/// Calls `work` with 0 to count - 1 in several threads. Results must not depend on which thread
/// does what. The first exception ends it and comes out of it.
void at_once(size_t count, const std::function<void(size_t)>& work, int threads = processors());

}  // namespace dsv32
