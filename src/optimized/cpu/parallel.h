#pragma once

#include <cstdint>

#include "src/bridge/parallel.h"

namespace dsv32::optimized::cpu {

/// Gives so many rows per task that a task is worth its start.
inline int64_t row_grain(int64_t width) {
  constexpr int64_t kElements = 16384;
  return width < kElements ? kElements / (width > 0 ? width : 1) : 1;
}

}  // namespace dsv32::optimized::cpu
