#include "src/optimized/kernels/attention_tile.h"
#include "src/optimized/kernels/kl.h"
#include "src/optimized/kernels/reduce.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

// Eight warps, two along the heads of a tile and four along its keys.
constexpr int kRowWarps = 2;
constexpr int kColumnWarps = 4;
constexpr int kTile = 64;    // heads, and keys
constexpr int kChunk = 128;  // columns of q and kv at a time
constexpr int kRowPieces = kTile / kRowWarps / kTileRows;
constexpr int kColumnPieces = kTile / kColumnWarps / kTileColumns;

/// The key at a place of a query; -1: none.
template <typename T>
__device__ inline int64_t key_at(const KlParams<T>& p, int64_t batch, int64_t s, int64_t place) {
  const KlSizes& n = p.sizes;
  if (place >= n.places) return -1;
  if (p.topk != nullptr) {
    const int64_t key = p.topk[(batch * n.queries + s) * n.places + place];
    return key < n.keys ? key : -1;
  }
  const int64_t edge = p.first_query + s - (mutant(KlMutant::hidden_diagonal) ? 1 : 0);
  return place <= edge && p.mask[batch * n.keys + place] ? place : -1;
}

/// Places of a query after which there is no key.
template <typename T>
__device__ inline int64_t last_place(const KlParams<T>& p, int64_t s) {
  return p.topk != nullptr ? p.sizes.places : min(p.sizes.places, p.first_query + s + 1);
}

/// One block per query: target = mass, the sum over heads, at the places that have a key.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1) kl_mass_kernel(KlParams<T> p) {
  constexpr int stride = tile_stride<T>(kChunk);
  const KlSizes& n = p.sizes;
  T* heads = shared_memory<T>();                                    // [kTile, stride]
  T* keys = heads + kTile * stride;                                 // [kTile, stride]
  float* halves = reinterpret_cast<float*>(keys + kTile * stride);  // [kRowWarps, kTile]
  const int64_t row = blockIdx.x, batch = row / n.queries, s = row % n.queries;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int first_head = warp / kColumnWarps * (kTile / kRowWarps);
  const int first_column = warp % kColumnWarps * (kTile / kColumnWarps);
  const int width = static_cast<int>(n.width);
  const int end = mutant(KlMutant::dropped_step) ? width - 1 : width;
  const int64_t head_count = mutant(KlMutant::dropped_head) ? n.heads - 1 : n.heads;
  const float scale = mutant(KlMutant::unscaled) ? 1.0f : p.scale;
  const bool vectors =
      width % kVectorWidth<T> == 0 && is_vector_aligned(p.q) && is_vector_aligned(p.kv);

  for (int64_t place = 0; place < last_place(p, s); place += kTile) {
    float mass[kColumnPieces][2] = {};
    for (int64_t head = 0; head < head_count; head += kTile) {
      Piece product[kRowPieces][kColumnPieces] = {};
      for (int column = 0; column < end; column += kChunk) {
        const int depth = min(kChunk, end - column);
        load_tile(heads, stride, {p.q + column, width, depth, padded_width(depth), vectors}, kTile,
                  [&](int r) { return head + r < head_count ? row * n.heads + head + r : -1; });
        load_tile(keys, stride, {p.kv + column, width, depth, padded_width(depth), vectors}, kTile,
                  [&](int r) {
                    const int64_t key = key_at(p, batch, s, place + r);
                    return key < 0 ? -1 : batch * n.keys + key;
                  });
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        for (int k = 0; k < depth; k += kDepth) {
          Left<T> left[kRowPieces];
#pragma unroll
          for (int m = 0; m < kRowPieces; ++m) {
            left[m] = load_left(heads + (first_head + m * kTileRows) * stride + k, stride);
          }
#pragma unroll
          for (int c = 0; c < kColumnPieces; ++c) {
            const Right<T> right = load_right_transposed(
                keys + (first_column + c * kTileColumns) * stride + k, stride);
#pragma unroll
            for (int m = 0; m < kRowPieces; ++m) multiply_add(product[m][c], left[m], right);
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t h = head + first_head + m * kTileRows + piece_row(i);
          const float lse = h < head_count ? p.lse[row * n.heads + h] : -INFINITY;
          if (lse == -INFINITY) continue;
#pragma unroll
          for (int c = 0; c < kColumnPieces; ++c) {
            mass[c][i % 2] += expf(scale * product[m][c].lane[i] - lse);
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumnPieces; ++c) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float sum = mass[c][i];
        for (int bits = 4; bits < kWarpSize; bits *= 2) {
          sum += __shfl_xor_sync(kFullWarp, sum, bits);
        }
        const int column = first_column + c * kTileColumns + piece_column(i);
        if (piece_row(0) == 0) halves[warp / kColumnWarps * kTile + column] = sum;
      }
    }
    if (!mutant(KlMutant::missing_barrier)) __syncthreads();
    const int column = static_cast<int>(threadIdx.x);
    if (column < kTile && place + column < n.places) {
      p.target[row * n.places + place + column] = halves[column] + halves[kTile + column];
    }
    __syncthreads();
  }
}

/// As block_sum of reduce.h: every thread gets the maximum over the block.
__device__ inline float block_max(float value, float* scratch) {
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, bits));
  }
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  float top = scratch[0];
  for (unsigned w = 1; w < blockDim.x / kWarpSize; ++w) top = fmaxf(top, scratch[w]);
  __syncthreads();
  return top;
}

/// One block per query: mass becomes the target; student, dscores and the row's KL.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1) kl_rows_kernel(KlParams<T> p) {
  float* scratch = shared_memory<float>();  // [kWarpSize]
  const KlSizes& n = p.sizes;
  const int64_t row = blockIdx.x, batch = row / n.queries, s = row % n.queries;
  const float* scores = p.scores + row * n.keys;
  float* target = p.target + row * n.places;
  const int64_t seen = last_place(p, s);
  const int64_t end = mutant(KlMutant::shifted_student) ? seen - 1 : seen;

  float top = -INFINITY, mass = 0;
  for (int64_t i = threadIdx.x; i < seen; i += blockDim.x) {
    const int64_t key = key_at(p, batch, s, i);
    if (key < 0) continue;
    mass += target[i];
    if (i < end) top = fmaxf(top, scores[key]);
  }
  const float total = mutant(KlMutant::not_normalised) ? 1.0f : block_sum(mass, scratch);
  top = block_max(top, scratch);
  float exponentials = 0;
  for (int64_t i = threadIdx.x; i < end; i += blockDim.x) {
    const int64_t key = key_at(p, batch, s, i);
    if (key >= 0) exponentials += expf(scores[key] - top);
  }
  const float log_sum = logf(block_sum(exponentials, scratch));

  float divergence = 0;
  for (int64_t i = threadIdx.x; i < n.places; i += blockDim.x) {
    const int64_t key = key_at(p, batch, s, i);
    float wanted = 0, student = 0;
    if (key >= 0) {
      const float log_student = scores[key] - top - log_sum;
      student = expf(log_student);
      if (total > 0) wanted = target[i] / total;
      if (wanted > 0) divergence += wanted * (logf(wanted) - log_student);
    }
    target[i] = wanted;
    p.student[row * n.places + i] = student;
    p.dscores[row * n.places + i] = student - wanted;
  }
  const float sum = block_sum(divergence, scratch);
  if (threadIdx.x == 0) p.rows[row] = sum;
}

template <typename T>
constexpr size_t mass_bytes() {
  return 2 * kTile * tile_stride<T>(kChunk) * sizeof(T) + kRowWarps * kTile * sizeof(float);
}

}  // namespace

template <typename T>
void launch_kl(const KlParams<T>& p, Stream stream) {
  const auto queries = static_cast<unsigned>(p.sizes.batch * p.sizes.queries);
  if (queries == 0) return;
  launch(kl_mass_kernel<T>,
         {.name = "kl_mass",
          .grid = queries,
          .block = kAttentionThreads,
          .shared_bytes = mass_bytes<T>()},
         stream, p);
  launch(kl_rows_kernel<T>,
         {.name = "kl_rows",
          .grid = queries,
          .block = kAttentionThreads,
          .shared_bytes = kWarpSize * sizeof(float)},
         stream, p);
}

template void launch_kl(const KlParams<float>&, Stream);
template void launch_kl(const KlParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
