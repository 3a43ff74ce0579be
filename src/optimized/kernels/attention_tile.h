#pragma once

/// Pieces of attention kernels: tiles in shared memory, products of tiles by one warp, and the
/// online softmax of a block. bf16 runs on the tensor cores, float32 on plain multiply-adds; both
/// hold their sums in the registers that mma.m16n8k16 uses.

#include <cmath>
#include <cstdint>

#include "src/optimized/simt/simt.h"

#if defined(__CUDACC__)
#define DSV32_UNROLL _Pragma("unroll")
#else
#define DSV32_UNROLL
#endif

namespace dsv32::optimized {

enum class AttentionMutant {
  none,
  missing_barrier,  // the softmax does not wait for the scores
  no_rescale,       // sums so far keep the scale of the old maximum
  stale_tail,       // columns past the width keep what lay in shared memory
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

constexpr int kAttentionThreads = 256;
constexpr int kAttentionWarps = kAttentionThreads / kWarpSize;
constexpr int kBlockKeys = 32;  // one key per lane, one bit per key of a word
constexpr int kDepth = 32;      // columns of the left factor in one step of a product
constexpr int kTileRows = 16;
constexpr int kTileColumns = 8;

/// Columns of a tile that holds rows of `width` elements.
DSV32_HOST_DEVICE constexpr int padded_width(int width) { return ceil_div(width, kDepth) * kDepth; }

/// Distance of rows in a tile: whole steps, and 16 bytes more, so that 8 rows use all banks once.
template <typename T>
DSV32_HOST_DEVICE constexpr int tile_stride(int width) {
  return padded_width(width) + kVectorWidth<T>;
}

/// Rows in global memory that go into the columns of a tile.
template <typename T>
struct TileSource {
  const T* rows;
  int64_t row_stride;
  int width;     // elements of a row
  int padded;    // columns of the tile that are theirs; those past the width get zeros
  bool vectors;  // rows may be read in 16-byte loads
};

/// Copies `row_count` rows into a tile. Row r is row row_of(r) of the source, zeros where that is
/// negative. All threads call it; the copy is complete after cp_async_wait and a barrier.
template <typename T, typename RowOf>
__device__ inline void load_tile(T* tile, int stride, const TileSource<T>& source, int row_count,
                                 RowOf row_of) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int padded = mutant(AttentionMutant::stale_tail) ? source.width : source.padded;
  for (int r = warp; r < row_count; r += kAttentionWarps) {
    const int64_t row = row_of(r);
    const T* from = source.rows + (row < 0 ? 0 : row) * source.row_stride;
    T* to = tile + r * stride;
    if (source.vectors) {
      for (int c = lane * kVectorWidth<T>; c < padded; c += kWarpSize * kVectorWidth<T>) {
        const bool exists = row >= 0 && c < source.width;
        cp_async<16>(to + c, from + (exists ? c : 0), exists);
      }
    } else {
      for (int c = lane; c < padded; c += kWarpSize) {
        to[c] = row >= 0 && c < source.width ? from[c] : from_float<T>(0.0f);
      }
    }
  }
}

/// A 16 x 8 piece of a result: lane[i] is at row lane / 4 + 8 (i / 2), column 2 (lane % 4) + i % 2.
struct Piece {
  float lane[4];
};

__device__ inline int piece_row(int i) { return threadIdx.x % kWarpSize / 4 + 8 * (i / 2); }
__device__ inline int piece_column(int i) { return threadIdx.x % 4 * 2 + i % 2; }

/// A 16 x 32 piece of the left factor of a product.
template <typename T>
struct Left;
/// A 32 x 8 piece of the right factor.
template <typename T>
struct Right;

template <>
struct Left<bf16> {
  uint32_t lane[2][4];
};
template <>
struct Right<bf16> {
  uint32_t lane[4];
};
// float32 stays in shared memory.
template <>
struct Left<float> {
  const float* row;
  int stride;
};
template <>
struct Right<float> {
  const float* first;
  int depth_stride;
  int column_stride;
};

/// left[m][k] = tile[m * stride + k].
__device__ inline Left<bf16> load_left(const bf16* tile, int stride) {
  const int lane = threadIdx.x % kWarpSize;
  const bf16* row = tile + lane % 16 * stride + lane / 16 * 8;
  Left<bf16> left;
  ldmatrix_x4(left.lane[0], row);
  ldmatrix_x4(left.lane[1], row + kDepth / 2);
  return left;
}

__device__ inline Left<float> load_left(const float* tile, int stride) {
  return {tile + piece_row(0) * stride, stride};
}

/// right[k][n] = tile[k * stride + n].
__device__ inline Right<bf16> load_right(const bf16* tile, int stride) {
  Right<bf16> right;
  ldmatrix_x4_trans(right.lane, tile + threadIdx.x % kWarpSize * stride);
  return right;
}

__device__ inline Right<float> load_right(const float* tile, int stride) {
  return {tile + piece_column(0), stride, 1};
}

/// right[k][n] = tile[n * stride + k].
__device__ inline Right<bf16> load_right_transposed(const bf16* tile, int stride) {
  const int lane = threadIdx.x % kWarpSize;
  Right<bf16> right;
  ldmatrix_x4(right.lane, tile + lane % 8 * stride + lane / 8 * 8);
  return right;
}

__device__ inline Right<float> load_right_transposed(const float* tile, int stride) {
  return {tile + piece_column(0) * stride, 1, stride};
}

/// sum += left right.
__device__ inline void multiply_add(Piece& sum, const Left<bf16>& left, const Right<bf16>& right) {
  const uint32_t first[2] = {right.lane[0], right.lane[1]};
  const uint32_t second[2] = {right.lane[2], right.lane[3]};
  mma_m16n8k16_bf16(sum.lane, left.lane[0], first, sum.lane);
  mma_m16n8k16_bf16(sum.lane, left.lane[1], second, sum.lane);
}

__device__ inline void multiply_add(Piece& sum, const Left<float>& left,
                                    const Right<float>& right) {
  for (int k = 0; k < kDepth; ++k) {
    const float upper = left.row[k], lower = left.row[8 * left.stride + k];
    const float even = right.first[k * right.depth_stride];
    const float odd = right.first[k * right.depth_stride + right.column_stride];
    sum.lane[0] += upper * even;
    sum.lane[1] += upper * odd;
    sum.lane[2] += lower * even;
    sum.lane[3] += lower * odd;
  }
}

/// sum += a b^T over `depth` columns; a is [16, depth], b is [8, depth], both zero up to a whole
/// step.
template <typename T>
__device__ inline void multiply_rows(Piece& sum, const T* a, int a_stride, const T* b, int b_stride,
                                     int depth) {
  for (int k = 0; k < depth; k += kDepth) {
    multiply_add(sum, load_left(a + k, a_stride), load_right_transposed(b + k, b_stride));
  }
}

/// sum[j][m] += left[m] right[:, 8 (warp + 8 j) ...] for the columns that this warp owns. left is
/// [16 kRowTiles, 32], right is [32, columns].
template <typename T, int kRowTiles, int kColumnTiles>
__device__ inline void multiply_columns(Piece (&sum)[kColumnTiles][kRowTiles], const T* left,
                                        int left_stride, const T* right, int right_stride,
                                        int columns) {
  Left<T> rows[kRowTiles];
  for (int m = 0; m < kRowTiles; ++m) {
    rows[m] = load_left(left + m * kTileRows * left_stride, left_stride);
  }
  const int warp = threadIdx.x / kWarpSize;
  DSV32_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    const int column = kTileColumns * (warp + kAttentionWarps * j);
    if (column >= columns) break;
    const Right<T> piece = load_right(right + column, right_stride);
    DSV32_UNROLL
    for (int m = 0; m < kRowTiles; ++m) multiply_add(sum[j][m], rows[m], piece);
  }
}

/// What the online softmax of `rows` rows keeps in shared memory.
struct SoftmaxRows {
  float* maximum;  // [rows] of the scaled scores so far
  float* sum;      // [rows] of exp(score - maximum)
  float* rescale;  // [rows] exp(old maximum - new maximum) of the last block
};

__device__ inline SoftmaxRows softmax_rows(float* shared, int rows) {
  return {shared, shared + rows, shared + 2 * rows};
}

__device__ inline void start_softmax(const SoftmaxRows& state, int rows) {
  for (int row = threadIdx.x; row < rows; row += kAttentionThreads) {
    state.maximum[row] = -INFINITY;
    state.sum[row] = 0;
  }
}

/// The row that this thread works on in softmax_block.
template <int kRows>
__device__ inline int softmax_row() {
  return threadIdx.x / (kAttentionThreads / kRows);
}

/// Takes one block of 32 keys into the softmax: probs = exp(scale scores - maximum), 0 where bit
/// `key` of `visible` (of this thread's row) is clear. scores is [kRows, kScoreStride], probs has
/// rows of `probs_stride`.
constexpr int kScoreStride = kBlockKeys + 1;

template <typename T, int kRows>
__device__ inline void softmax_block(const float* scores, T* probs, int probs_stride,
                                     const SoftmaxRows& state, float scale, uint32_t visible) {
  constexpr int kThreadsPerRow = kAttentionThreads / kRows;
  constexpr int kKeys = kBlockKeys / kThreadsPerRow;
  const int row = softmax_row<kRows>(), first = threadIdx.x % kThreadsPerRow;
  const float before = state.maximum[row];
  float score[kKeys];
  float maximum = before;
  for (int i = 0; i < kKeys; ++i) {
    const int key = first + i * kThreadsPerRow;
    const bool sees = (visible >> key & 1u) != 0;
    score[i] = sees ? scores[row * kScoreStride + key] * scale : -INFINITY;
    maximum = fmaxf(maximum, score[i]);
  }
  for (int bits = kThreadsPerRow / 2; bits > 0; bits /= 2) {
    maximum = fmaxf(maximum, __shfl_xor_sync(kFullWarp, maximum, bits));
  }
  float sum = 0;
  for (int i = 0; i < kKeys; ++i) {
    const float prob = score[i] == -INFINITY ? 0.0f : expf(score[i] - maximum);
    probs[row * probs_stride + first + i * kThreadsPerRow] = from_float<T>(prob);
    sum += prob;
  }
  for (int bits = kThreadsPerRow / 2; bits > 0; bits /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, bits);
  }
  if (first != 0) return;
  const float rescale = before == -INFINITY ? 0.0f : expf(before - maximum);
  state.rescale[row] = mutant(AttentionMutant::no_rescale) ? 1.0f : rescale;
  state.sum[row] = state.sum[row] * rescale + sum;
  state.maximum[row] = maximum;
}

/// Log of the sum of exp(scaled score) over the keys of a row; -inf without keys.
__device__ inline float log_sum_exp(const SoftmaxRows& state, int row) {
  return state.sum[row] == 0 ? -INFINITY : state.maximum[row] + logf(state.sum[row]);
}

template <int kRowTiles, int kColumnTiles>
__device__ inline void rescale_rows(Piece (&sum)[kColumnTiles][kRowTiles], const float* factor) {
  DSV32_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    DSV32_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      for (int i = 0; i < 4; ++i) sum[j][m].lane[i] *= factor[m * kTileRows + piece_row(i)];
    }
  }
}

}  // namespace dsv32::optimized::DSV32_BACKEND
