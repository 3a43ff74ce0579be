#include "src/optimized/kernels/attention_tile.h"
#include "src/optimized/kernels/index_scores.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

// Eight warps, two along the rows of a tile and four along its columns.
constexpr int kRowWarps = 2;
constexpr int kColumnWarps = 4;
constexpr int kQueries = 64;
constexpr int kKeys = 128;
constexpr int kTile = static_cast<int>(kIndexTile);
constexpr int kRowPieces = kTile / kRowWarps / kTileRows;  // of a warp

__device__ inline int warp_row() {
  return static_cast<int>(threadIdx.x) / kWarpSize / kColumnWarps * (kTile / kRowWarps);
}
__device__ inline int warp_column(int columns) {
  return static_cast<int>(threadIdx.x) / kWarpSize % kColumnWarps * (columns / kColumnWarps);
}

/// sum[m][n] += a b^T for the pieces of this warp; a is [16 kRows, depth], b is [8 kColumns,
/// depth].
template <typename T, int kRows, int kColumns>
__device__ inline void multiply_tiles(Piece (&sum)[kRows][kColumns], const T* a, const T* b,
                                      int stride, int depth) {
  for (int k = 0; k < depth; k += kDepth) {
    Left<T> left[kRows];
#pragma unroll
    for (int m = 0; m < kRows; ++m) left[m] = load_left(a + m * kTileRows * stride + k, stride);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      const Right<T> right = load_right_transposed(b + n * kTileColumns * stride + k, stride);
#pragma unroll
      for (int m = 0; m < kRows; ++m) multiply_add(sum[m][n], left[m], right);
    }
  }
}

/// One block per 64 queries and 128 keys; the heads come one after another, the queries of the next
/// one are on their way while this one is multiplied.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    index_scores_kernel(IndexScoresParams<T> p) {
  constexpr int kColumns = kKeys / kColumnWarps / kTileColumns;
  const IndexSizes& n = p.sizes;
  const int dim = static_cast<int>(n.dim), stride = tile_stride<T>(dim);
  T* keys = shared_memory<T>();        // [kKeys, stride]
  T* queries = keys + kKeys * stride;  // [2, kQueries, stride]
  const int64_t first_key = static_cast<int64_t>(blockIdx.x) * kKeys;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kQueries;
  const int64_t batch = blockIdx.z;
  const int64_t last_row = min(first_row + kQueries, n.queries) - 1;

  Piece sum[kRowPieces][kColumns] = {};
  const bool any_visible = first_key <= p.first_query + last_row;
  if (any_visible) {
    const bool vectors =
        dim % kVectorWidth<T> == 0 && is_vector_aligned(p.q) && is_vector_aligned(p.k);
    const auto load_queries = [&](int64_t head) {
      load_tile(queries + head % 2 * kQueries * stride, stride,
                {p.q, dim, dim, padded_width(dim), vectors}, kQueries, [&](int r) {
                  const int64_t s = first_row + r;
                  return s < n.queries ? (batch * n.queries + s) * n.heads + head : -1;
                });
      cp_async_commit();
    };
    load_tile(keys, stride, {p.k, dim, dim, padded_width(dim), vectors}, kKeys,
              [&](int r) { return first_key + r < n.keys ? batch * n.keys + first_key + r : -1; });
    load_queries(0);
    const int64_t heads = mutant(IndexScoresMutant::dropped_head) ? n.heads - 1 : n.heads;
    for (int64_t head = 0; head < heads; ++head) {
      if (head + 1 < heads) {
        load_queries(head + 1);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      if (!mutant(IndexScoresMutant::missing_barrier)) __syncthreads();
      Piece product[kRowPieces][kColumns] = {};
      multiply_tiles(product, queries + (head % 2 * kQueries + warp_row()) * stride,
                     keys + warp_column(kKeys) * stride, stride, dim);
#pragma unroll
      for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t s = first_row + warp_row() + m * kTileRows + piece_row(i);
          const float weight =
              s < n.queries ? p.weights[(batch * n.queries + s) * n.heads + head] : 0.0f;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            sum[m][c].lane[i] += weight * fmaxf(product[m][c].lane[i], 0.0f);
          }
        }
      }
      __syncthreads();
    }
  }

  const int64_t edge = p.first_query - (mutant(IndexScoresMutant::hidden_diagonal) ? 1 : 0);
#pragma unroll
  for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t s = first_row + warp_row() + m * kTileRows + piece_row(i);
        const int64_t t = first_key + warp_column(kKeys) + c * kTileColumns + piece_column(i);
        if (s >= n.queries || t >= n.keys) continue;
        const bool kept = mutant(IndexScoresMutant::unmasked) || p.mask[batch * n.keys + t];
        p.scores[(batch * n.queries + s) * n.keys + t] =
            t <= edge + s && kept ? sum[m][c].lane[i] : -INFINITY;
      }
    }
  }
}

/// dscores of query s for key t, 0 where it is not visible.
template <typename T>
__device__ inline float slope_of(const IndexScoresBackwardParams<T>& p, const float* dscores,
                                 int64_t batch, int64_t s, int64_t t) {
  const IndexSizes& n = p.sizes;
  if (s >= n.queries || t >= n.keys || t > p.first_query + s) return 0;
  if (p.mask != nullptr && !p.mask[batch * n.keys + t]) return 0;
  return dscores[(batch * n.queries + s) * n.keys + t];
}

/// Rows of q, a head of a query each, that one block of the dq kernel works on, and its keys.
struct RowTile {
  int64_t first;    // in [0, S HI)
  int count;        // at most kTile
  int64_t columns;  // keys that any of them sees, or places of topk
};

template <typename T>
__device__ inline RowTile row_tile(const IndexScoresBackwardParams<T>& p) {
  const IndexSizes& n = p.sizes;
  const int64_t x = blockIdx.x, all = n.queries * n.heads;
  if (p.topk == nullptr) {
    const int64_t first = x * kTile, count = min(int64_t{kTile}, all - first);
    const int64_t last_query = (first + count - 1) / n.heads;
    return {first, static_cast<int>(count), min(n.keys, p.first_query + last_query + 1)};
  }
  const int64_t tiles = ceil_div<int64_t>(n.heads, kTile);  // of one query
  const int64_t head = x % tiles * kTile;
  return {x / tiles * n.heads + head, static_cast<int>(min(int64_t{kTile}, n.heads - head)),
          p.topk_width};
}

/// dq and dweights of 64 rows: the rows stay, the keys pass by. Dense: all rows of the batch row in
/// order. With topk: rows of one query, keys gathered.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    index_dq_kernel(IndexScoresBackwardParams<T> p) {
  constexpr int kColumns = kTile / kColumnWarps / kTileColumns;
  constexpr int kDimPieces = static_cast<int>(kIndexMaxDim) / kColumnWarps / kTileColumns;
  const IndexSizes& n = p.sizes;
  const int dim = static_cast<int>(n.dim), stride = tile_stride<T>(dim);
  constexpr int kSlopeStride = tile_stride<T>(kTile);
  T* rows = shared_memory<T>();       // [kTile, stride]
  T* keys = rows + kTile * stride;    // [kTile, stride]
  T* slopes = keys + kTile * stride;  // [kTile, kSlopeStride] dscore [a > 0]
  float* row_sums = reinterpret_cast<float*>(slopes + kTile * kSlopeStride);  // [4, kTile]
  const int64_t batch = blockIdx.y;
  const RowTile tile = row_tile(p);
  const int64_t batch_row = batch * n.queries * n.heads + tile.first;
  const int64_t gathered = (batch * n.queries + tile.first / n.heads) * p.topk_width;
  const bool vectors =
      dim % kVectorWidth<T> == 0 && is_vector_aligned(p.q) && is_vector_aligned(p.k);
  load_tile(rows, stride, {p.q, dim, dim, padded_width(dim), vectors}, kTile,
            [&](int r) { return r < tile.count ? batch_row + r : -1; });
  const auto key_at = [&](int64_t column) -> int64_t {
    if (column >= tile.columns) return -1;
    if (p.topk == nullptr) return column;
    const int64_t key = p.topk[gathered + column];
    return key < n.keys ? key : -1;
  };

  Piece dq[kRowPieces][kDimPieces] = {};
  float dweight[kRowPieces][2] = {};
  for (int64_t column = 0; column < tile.columns; column += kTile) {
    load_tile(keys, stride, {p.k, dim, dim, padded_width(dim), vectors}, kTile, [&](int r) {
      const int64_t key = key_at(column + r);
      return key < 0 ? -1 : batch * n.keys + key;
    });
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    Piece product[kRowPieces][kColumns] = {};
    multiply_tiles(product, rows + warp_row() * stride, keys + warp_column(kTile) * stride, stride,
                   dim);
#pragma unroll
    for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = warp_row() + m * kTileRows + piece_row(i);
          const int at = warp_column(kTile) + c * kTileColumns + piece_column(i);
          float slope = 0;
          if (r < tile.count && p.topk == nullptr) {
            slope = slope_of(p, p.dscores, batch, (tile.first + r) / n.heads, column + at);
          } else if (r < tile.count && key_at(column + at) >= 0) {
            slope = p.dscores[gathered + column + at];
          }
          const float a = product[m][c].lane[i];
          const bool is_on = a > 0 || mutant(IndexScoresMutant::ungated);
          dweight[m][i / 2] += slope * fmaxf(a, 0.0f);
          slopes[r * kSlopeStride + at] = from_float<T>(is_on ? slope : 0.0f);
        }
      }
    }
    if (!mutant(IndexScoresMutant::stale_slopes)) __syncthreads();
    for (int k = 0; k < kTile; k += kDepth) {
      Left<T> left[kRowPieces];
#pragma unroll
      for (int m = 0; m < kRowPieces; ++m) {
        left[m] = load_left(slopes + (warp_row() + m * kTileRows) * kSlopeStride + k, kSlopeStride);
      }
#pragma unroll
      for (int c = 0; c < kDimPieces; ++c) {
        const int d = warp_column(static_cast<int>(kIndexMaxDim)) + c * kTileColumns;
        if (d >= dim) break;
        const Right<T> right = load_right(keys + k * stride + d, stride);
#pragma unroll
        for (int m = 0; m < kRowPieces; ++m) multiply_add(dq[m][c], left[m], right);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = dweight[m][half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      const int warp = static_cast<int>(threadIdx.x) / kWarpSize % kColumnWarps;
      const int r = warp_row() + m * kTileRows + piece_row(2 * half);
      if (threadIdx.x % 4 == 0) row_sums[warp * kTile + r] = sum;
    }
#pragma unroll
    for (int c = 0; c < kDimPieces; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = warp_row() + m * kTileRows + piece_row(i);
        const int d =
            warp_column(static_cast<int>(kIndexMaxDim)) + c * kTileColumns + piece_column(i);
        if (r >= tile.count || d >= dim) continue;
        p.dq[(batch_row + r) * dim + d] =
            from_float<T>(p.weights[batch_row + r] * dq[m][c].lane[i]);
      }
    }
  }
  __syncthreads();
  const int r = static_cast<int>(threadIdx.x);
  if (r >= tile.count) return;
  float sum = 0;
  for (int warp = 0; warp < kColumnWarps; ++warp) sum += row_sums[warp * kTile + r];
  p.dweights[batch_row + r] = sum;
}

/// Partial sums of dk: 64 keys stay, the rows of the queries that see them pass by. Block y takes
/// the row tiles y, y + gridDim.y, ...
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    index_dk_kernel(IndexScoresBackwardParams<T> p) {
  constexpr int kColumns = kTile / kColumnWarps / kTileColumns;
  constexpr int kDimPieces = static_cast<int>(kIndexMaxDim) / kColumnWarps / kTileColumns;
  const IndexSizes& n = p.sizes;
  const int dim = static_cast<int>(n.dim), stride = tile_stride<T>(dim);
  constexpr int kSlopeStride = tile_stride<T>(kTile);
  T* keys = shared_memory<T>();       // [kTile, stride]
  T* rows = keys + kTile * stride;    // [kTile, stride]
  T* slopes = rows + kTile * stride;  // [kTile, kSlopeStride] w dscore [a > 0], keys down
  const int64_t batch = blockIdx.z, first_key = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t all_rows = n.queries * n.heads;
  const float* dscores = p.topk == nullptr ? p.dscores : p.dense_dscores;
  const bool vectors =
      dim % kVectorWidth<T> == 0 && is_vector_aligned(p.q) && is_vector_aligned(p.k);
  load_tile(keys, stride, {p.k, dim, dim, padded_width(dim), vectors}, kTile,
            [&](int r) { return first_key + r < n.keys ? batch * n.keys + first_key + r : -1; });

  const int64_t first_query = max(int64_t{0}, first_key - p.first_query) +
                              (mutant(IndexScoresMutant::lost_first_query) ? 1 : 0);
  const int64_t first_tile = first_query * n.heads / kTile;
  Piece dk[kRowPieces][kDimPieces] = {};
  for (int64_t tile = first_tile + blockIdx.y; tile * kTile < all_rows; tile += gridDim.y) {
    const int64_t first_row = tile * kTile;
    load_tile(rows, stride, {p.q, dim, dim, padded_width(dim), vectors}, kTile, [&](int r) {
      return first_row + r < all_rows ? batch * all_rows + first_row + r : -1;
    });
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    Piece product[kRowPieces][kColumns] = {};
    multiply_tiles(product, keys + warp_row() * stride, rows + warp_column(kTile) * stride, stride,
                   dim);
#pragma unroll
    for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = warp_row() + m * kTileRows + piece_row(i);
          const int column = warp_column(kTile) + c * kTileColumns + piece_column(i);
          const int64_t row = first_row + column;
          float slope = 0;
          if (row < all_rows && product[m][c].lane[i] > 0) {
            const float weight =
                mutant(IndexScoresMutant::unweighted_dk) ? 1.0f : p.weights[batch * all_rows + row];
            slope = weight * slope_of(p, dscores, batch, row / n.heads, first_key + key);
          }
          slopes[key * kSlopeStride + column] = from_float<T>(slope);
        }
      }
    }
    __syncthreads();
    for (int k = 0; k < kTile; k += kDepth) {
      Left<T> left[kRowPieces];
#pragma unroll
      for (int m = 0; m < kRowPieces; ++m) {
        left[m] = load_left(slopes + (warp_row() + m * kTileRows) * kSlopeStride + k, kSlopeStride);
      }
#pragma unroll
      for (int c = 0; c < kDimPieces; ++c) {
        const int d = warp_column(static_cast<int>(kIndexMaxDim)) + c * kTileColumns;
        if (d >= dim) break;
        const Right<T> right = load_right(rows + k * stride + d, stride);
#pragma unroll
        for (int m = 0; m < kRowPieces; ++m) multiply_add(dk[m][c], left[m], right);
      }
    }
    __syncthreads();
  }
  cp_async_wait<0>();

  const int64_t split = mutant(IndexScoresMutant::atomic_dk) ? 0 : blockIdx.y;
  float* partial = p.dk_partial + (split * n.batch + batch) * n.keys * dim;
#pragma unroll
  for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
    for (int c = 0; c < kDimPieces; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t key = first_key + warp_row() + m * kTileRows + piece_row(i);
        const int d =
            warp_column(static_cast<int>(kIndexMaxDim)) + c * kTileColumns + piece_column(i);
        if (key >= n.keys || d >= dim) continue;
        if (mutant(IndexScoresMutant::atomic_dk)) {
          atomicAdd(partial + key * dim + d, dk[m][c].lane[i]);
        } else {
          partial[key * dim + d] = dk[m][c].lane[i];
        }
      }
    }
  }
}

/// dk from its partial sums, in order.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    index_dk_sum_kernel(IndexScoresBackwardParams<T> p) {
  const int64_t count = p.sizes.batch * p.sizes.keys * p.sizes.dim;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int64_t splits = index_key_splits(p.sizes);
  if (mutant(IndexScoresMutant::dropped_split)) --splits;
  if (mutant(IndexScoresMutant::atomic_dk)) splits = 1;
  float sum = 0;
  for (int64_t split = 0; split < splits; ++split) sum += p.dk_partial[split * count + i];
  p.dk[i] = from_float<T>(sum);
}

/// One block per query: its row of dense_dscores.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    index_scatter_kernel(IndexScoresBackwardParams<T> p) {
  const int64_t row = blockIdx.x;
  float* dense = p.dense_dscores + row * p.sizes.keys;
  for (int64_t t = threadIdx.x; t < p.sizes.keys; t += blockDim.x) dense[t] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.topk_width; i += blockDim.x) {
    const int64_t key = p.topk[row * p.topk_width + i];
    if (key >= 0 && key < p.sizes.keys) dense[key] = p.dscores[row * p.topk_width + i];
  }
}

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>(ceil_div(count, per_block));
}

template <typename T>
size_t backward_bytes(int64_t dim) {
  const int64_t slopes = kTile * tile_stride<T>(kTile);
  const int64_t tiles = 2 * kTile * tile_stride<T>(static_cast<int>(dim)) + slopes;
  return static_cast<size_t>(tiles) * sizeof(T) + kColumnWarps * kTile * sizeof(float);
}

}  // namespace

template <typename T>
void launch_index_scores(const IndexScoresParams<T>& p, Stream stream) {
  const IndexSizes& n = p.sizes;
  if (n.batch == 0 || n.queries == 0 || n.keys == 0) return;
  const auto rows = static_cast<size_t>(kKeys + 2 * kQueries);
  launch(
      index_scores_kernel<T>,
      {.name = "index_scores",
       .grid = {blocks(n.keys, kKeys), blocks(n.queries, kQueries), static_cast<unsigned>(n.batch)},
       .block = kAttentionThreads,
       .shared_bytes = rows * tile_stride<T>(static_cast<int>(n.dim)) * sizeof(T)},
      stream, p);
}

template <typename T>
void launch_index_scores_backward(const IndexScoresBackwardParams<T>& p, Stream stream) {
  const IndexSizes& n = p.sizes;
  const auto batch = static_cast<unsigned>(n.batch);
  if (n.batch == 0) return;
  if (p.topk != nullptr && n.queries > 0) {
    launch(index_scatter_kernel<T>,
           {.name = "index_scatter",
            .grid = static_cast<unsigned>(n.batch * n.queries),
            .block = kAttentionThreads},
           stream, p);
  }
  if (n.queries > 0) {
    const unsigned tiles = p.topk == nullptr
                               ? blocks(n.queries * n.heads, kTile)
                               : static_cast<unsigned>(n.queries) * blocks(n.heads, kTile);
    launch(index_dq_kernel<T>,
           {.name = "index_dq",
            .grid = {tiles, batch},
            .block = kAttentionThreads,
            .shared_bytes = backward_bytes<T>(n.dim)},
           stream, p);
  }
  if (n.keys == 0) return;
  launch(index_dk_kernel<T>,
         {.name = "index_dk",
          .grid = {blocks(n.keys, kTile), static_cast<unsigned>(index_key_splits(n)), batch},
          .block = kAttentionThreads,
          .shared_bytes = backward_bytes<T>(n.dim)},
         stream, p);
  launch(index_dk_sum_kernel<T>,
         {.name = "index_dk_sum",
          .grid = blocks(n.batch * n.keys * n.dim, kAttentionThreads),
          .block = kAttentionThreads},
         stream, p);
}

template void launch_index_scores(const IndexScoresParams<float>&, Stream);
template void launch_index_scores(const IndexScoresParams<bf16>&, Stream);
template void launch_index_scores_backward(const IndexScoresBackwardParams<float>&, Stream);
template void launch_index_scores_backward(const IndexScoresBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
