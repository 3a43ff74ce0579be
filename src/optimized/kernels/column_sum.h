#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"

/// column_sum: adds the partial sums that blocks left, in order: the same bits on every run.
namespace dsv32::optimized {

struct ColumnSumParams {
  const float* x;  // [rows, width]
  float* y;        // [width]
  int64_t rows;
  int64_t width;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

void launch_column_sum(const ColumnSumParams& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
