#include "src/reference/ordered_sums.h"

#include <algorithm>
#include <array>

namespace dsv32::reference {
namespace {

constexpr int64_t kLanes = 16;  // of one vector: a cache line of float32
constexpr int64_t kVectors = 2;
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileCols = kOrderedCols;
static_assert(kTileCols == kLanes * kVectors);

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float))));

// One tile of C, whole in registers: rows x kTileCols.
template <int64_t kRows>
[[gnu::always_inline]] inline void tile(const OrderedProduct& p, int64_t row, int64_t col) {
  Vector sum[kRows][kVectors] = {};
  for (int64_t k = 0; k < p.depth; ++k) {
    const float* b = p.b + k * p.ldb + col;
    for (int64_t r = 0; r < kRows; ++r) {
      const float a = p.a[(row + r) * p.lda + k];
      for (int64_t v = 0; v < kVectors; ++v)
        sum[r][v] += a * *reinterpret_cast<const Vector*>(b + v * kLanes);
    }
  }
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector*>(p.c + (row + r) * p.ldc + col + v * kLanes) = sum[r][v];
}

// The columns that fill no tile, and every column of a narrow product.
[[gnu::always_inline]] inline void edge(const OrderedProduct& p, int64_t row, int64_t col) {
  const int64_t width = p.cols - col;
  std::array<float, kTileCols> sum = {};
  for (int64_t k = 0; k < p.depth; ++k) {
    const float a = p.a[row * p.lda + k];
    const float* b = p.b + k * p.ldb + col;
    for (int64_t j = 0; j < width; ++j) sum[j] += a * b[j];
  }
  std::copy_n(sum.begin(), width, p.c + row * p.ldc + col);
}

}  // namespace

// Wider vectors change no bit: lanes are columns, and no column's sum is split.
__attribute__((target_clones("avx512f", "avx2", "default"))) void ordered_product(
    const OrderedProduct& p) {
  const int64_t whole_cols = p.cols - p.cols % kTileCols;
  const int64_t whole_rows = p.rows - p.rows % kTileRows;
  for (int64_t col = 0; col < whole_cols; col += kTileCols) {
    for (int64_t row = 0; row < whole_rows; row += kTileRows) tile<kTileRows>(p, row, col);
    for (int64_t row = whole_rows; row < p.rows; ++row) tile<1>(p, row, col);
  }
  if (whole_cols == p.cols) return;
  for (int64_t row = 0; row < p.rows; ++row) edge(p, row, whole_cols);
}

void ordered_row_sums(const float* x, float* sums, int64_t rows, int64_t depth) {
  for (int64_t row = 0; row < rows; ++row) {
    float sum = 0;
    for (int64_t k = 0; k < depth; ++k) sum += x[row * depth + k];
    sums[row] = sum;
  }
}

}  // namespace dsv32::reference
