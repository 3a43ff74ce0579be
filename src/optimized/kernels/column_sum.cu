#include "src/optimized/kernels/column_sum.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kColumns = 32;
constexpr unsigned kRowGroups = 8;

/// One block per 32 columns; thread (c, g) adds rows g, g + 8, ... of column c.
__global__ void __launch_bounds__(kColumns* kRowGroups) column_sum_kernel(ColumnSumParams p) {
  float* group_sums = shared_memory<float>();  // [kRowGroups, kColumns]
  const unsigned column_in_block = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + column_in_block;
  float sum = 0;
  if (column < p.width) {
    for (int64_t row = group; row < p.rows; row += kRowGroups) sum += p.x[row * p.width + column];
  }
  group_sums[threadIdx.x] = sum;
  __syncthreads();
  if (group != 0 || column >= p.width) return;
  float total = 0;
  for (unsigned g = 0; g < kRowGroups; ++g) total += group_sums[g * kColumns + column_in_block];
  p.y[column] = total;
}

}  // namespace

void launch_column_sum(const ColumnSumParams& params, Stream stream) {
  if (params.width == 0) return;
  launch(column_sum_kernel,
         {.name = "column_sum",
          .grid = static_cast<unsigned>(ceil_div<int64_t>(params.width, kColumns)),
          .block = kColumns * kRowGroups,
          .shared_bytes = sizeof(float) * kColumns * kRowGroups},
         stream, params);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
