#pragma once

#include <cstdint>
#include <functional>

namespace dsv32::optimized::cpu {

/// Calls body(begin, end) over [0, count) on ATen's threads, each call with `grain` items or more.
/// Results must not depend on how the range is split: the thread count changes it.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

/// Gives so many rows per task that a task is worth its start.
inline int64_t row_grain(int64_t width) {
  constexpr int64_t kElements = 16384;
  return width < kElements ? kElements / (width > 0 ? width : 1) : 1;
}

}  // namespace dsv32::optimized::cpu
