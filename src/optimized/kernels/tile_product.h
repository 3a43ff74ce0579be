#pragma once

/// One 64 x 64 tile of a matrix product by a block of 128 threads: tensor cores for bf16, fused
/// multiply-add for float32, float32 sums in both. A row of the result is a function of its own row
/// and of the other operand: it has the same bits whatever rows share the tile.

#include <cstdint>
#include <type_traits>

#include "src/optimized/simt/simt.h"

namespace dsv32::optimized {

enum class TileProductMutant {
  none,
  stale_tail,       // what lies behind the end of the depth is not set to zero
  missing_barrier,  // a tile is overwritten while others still read it
  dropped_depth,    // the last tile along the depth is left out
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

constexpr int kTile = 64;
constexpr unsigned kTileThreads = 128;
constexpr int kTileDepth = 32;
/// Elements of a result tile that a thread keeps.
constexpr int kTileSums = kTile * kTile / static_cast<int>(kTileThreads);

/// Rows of a tile in shared memory are padded, so that the lanes of a warp read different banks.
template <typename T>
constexpr int kTileStride = kTileDepth + kVectorWidth<T>;

template <typename T>
constexpr size_t kTileBytes = sizeof(T) * kTile* kTileStride<T>;

/// One operand, `rows` x `depth`. Of the two axes one is contiguous; the other, called outer, may
/// be gathered: element (outer, inner) is base[index(outer) * stride + inner].
template <typename T>
struct Operand {
  const T* base;
  int64_t stride;  // elements from one outer index to the next
  int64_t rows;
  int64_t depth;
  bool depth_is_inner;    // rows are contiguous along the depth, else along the rows
  const int32_t* gather;  // index(outer) = gather[outer] / divisor; null: outer itself
  int32_t divisor;

  __device__ const T* at(int64_t outer, int64_t inner) const {
    const int64_t index = gather == nullptr ? outer : gather[outer] / divisor;
    return base + index * stride + inner;
  }
};

/// Copies rows [row, row + 64) of depths [depth, depth + 32) to tile[64, kTileStride]; zeros
/// outside.
template <typename T>
__device__ inline void stage_tile(const Operand<T>& operand, int64_t row, int64_t depth, T* tile) {
  constexpr int V = kVectorWidth<T>;
  const int inner_size = operand.depth_is_inner ? kTileDepth : kTile;
  const int vectors = inner_size / V;  // per outer index
  const int64_t outer_end = operand.depth_is_inner ? operand.rows : operand.depth;
  const int64_t inner_end = operand.depth_is_inner ? operand.depth : operand.rows;
  const int64_t outer_start = operand.depth_is_inner ? row : depth;
  const int64_t inner_start = operand.depth_is_inner ? depth : row;
  const bool aligned = operand.stride % V == 0 &&
                       reinterpret_cast<uintptr_t>(operand.base) % sizeof(Vector<T, V>) == 0;
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kTileDepth / V; i += kTileThreads) {
    const int outer = i / vectors, inner = i % vectors * V;
    const int64_t from = outer_start + outer, start = inner_start + inner;
    Vector<T, V> values{};
    if (from < outer_end && start + V <= inner_end && aligned) {
      values = load_vector<V>(operand.at(from, start));
    } else if (from < outer_end) {
      for (int j = 0; j < V && start + j < inner_end; ++j)
        values.lane[j] = *operand.at(from, start + j);
    }
    if (mutant(TileProductMutant::stale_tail) && start >= inner_end) continue;
    if (operand.depth_is_inner) {
      store_vector<V>(tile + outer * kTileStride<T> + inner, values);
    } else {
      for (int j = 0; j < V; ++j) tile[(inner + j) * kTileStride<T> + outer] = values.lane[j];
    }
  }
}

/// Row and column in the tile of the thread's i-th sum.
struct TileElement {
  int row, column;
};

template <typename T>
__device__ inline TileElement tile_element(int i) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (std::is_same_v<T, float>) {
    return {thread / 16 * 8 + i / 4, thread % 16 + i % 4 * 16};
  } else {
    const int warp = thread / kWarpSize, lane = thread % kWarpSize;
    const int product = i / 4, part = i % 4;  // four per mma of 16 x 8; 2 x 4 mmas per warp
    return {warp / 2 * 32 + product / 4 * 16 + lane / 4 + part / 2 * 8,
            warp % 2 * 32 + product % 4 * 8 + lane % 4 * 2 + part % 2};
  }
}

__device__ inline void multiply_tiles(const float* a, const float* b, float (&sums)[kTileSums]) {
  const int thread = static_cast<int>(threadIdx.x);
  const float* rows = a + thread / 16 * 8 * kTileStride<float>;
  const float* columns = b + thread % 16 * kTileStride<float>;
  for (int k = 0; k < kTileDepth; ++k) {
    for (int i = 0; i < kTileSums; ++i) {
      sums[i] = fmaf(rows[i / 4 * kTileStride<float> + k],
                     columns[i % 4 * 16 * kTileStride<float> + k], sums[i]);
    }
  }
}

/// Two neighbours along the depth as one register of an mma.
__device__ inline uint32_t load_pair(const bf16* pair) {
  return *reinterpret_cast<const uint32_t*>(pair);
}

__device__ inline void multiply_tiles(const bf16* a, const bf16* b, float (&sums)[kTileSums]) {
  constexpr int kStride = kTileStride<bf16>;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const bf16* rows = a + (warp / 2 * 32 + lane / 4) * kStride + lane % 4 * 2;
  const bf16* columns = b + (warp % 2 * 32 + lane / 4) * kStride + lane % 4 * 2;
  for (int k = 0; k < kTileDepth; k += 16) {
    for (int m = 0; m < 2; ++m) {
      const bf16* row = rows + m * 16 * kStride + k;
      const uint32_t left[4] = {load_pair(row), load_pair(row + 8 * kStride), load_pair(row + 8),
                                load_pair(row + 8 * kStride + 8)};
      for (int n = 0; n < 4; ++n) {
        const bf16* column = columns + n * 8 * kStride + k;
        const uint32_t right[2] = {load_pair(column), load_pair(column + 8)};
        float part[4];
        for (int i = 0; i < 4; ++i) part[i] = sums[(m * 4 + n) * 4 + i];
        mma_m16n8k16_bf16(part, left, right, part);
        for (int i = 0; i < 4; ++i) sums[(m * 4 + n) * 4 + i] = part[i];
      }
    }
  }
}

/// sums += a b^T for rows [row, row + 64) of `a` and rows [column, column + 64) of `b`. `tiles` is
/// shared memory for 2 kTileBytes, free again when the function returns.
template <typename T>
__device__ inline void add_tile_product(const Operand<T>& a, int64_t row, const Operand<T>& b,
                                        int64_t column, T* tiles, float (&sums)[kTileSums]) {
  T* a_tile = tiles;
  T* b_tile = tiles + kTile * kTileStride<T>;
  const bool drops = mutant(TileProductMutant::dropped_depth);
  const int64_t end = drops && a.depth > kTileDepth ? a.depth - kTileDepth : a.depth;
  for (int64_t depth = 0; depth < end; depth += kTileDepth) {
    stage_tile(a, row, depth, a_tile);
    stage_tile(b, column, depth, b_tile);
    __syncthreads();
    multiply_tiles(a_tile, b_tile, sums);
    if (!mutant(TileProductMutant::missing_barrier)) __syncthreads();
  }
}

}  // namespace dsv32::optimized::DSV32_BACKEND
