#include "src/optimized/kernels/attention_tile.h"
#include "src/optimized/kernels/masked_mha.h"
#include "src/optimized/kernels/reduce.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

// 8 warps of 4 tiles of 8 columns.
constexpr int kColumnTiles = 4;
static_assert(kColumnTiles * kAttentionWarps * kTileColumns == kMaxMhaWidth);
// Row tiles of a block of queries.
template <typename T>
constexpr int kQueryTiles = sizeof(T) == 2 ? 4 : 2;
// Where the keys stay and queries pass by: a block has as many queries as keys.
constexpr int kKeyTiles = kBlockKeys / kTileRows;

/// The attention inputs of forward and backward.
template <typename T>
struct Inputs {
  const T* q;
  const T* k_nope;
  const T* k_rope;
  const T* v;
  const int32_t* support;
  MhaShape shape;
  bool vectors;  // rows may be read in 16-byte loads
};

/// Bits of word `word` of query (b, s); none past the queries and past the keys.
template <typename T>
__device__ uint32_t visible_word(const Inputs<T>& in, int64_t b, int64_t s, int64_t word) {
  const MhaShape& shape = in.shape;
  if (s >= shape.queries) return 0;
  const auto bits =
      static_cast<uint32_t>(in.support[(b * shape.queries + s) * shape.words() + word]);
  const int64_t keys = shape.keys - word * kBlockKeys;
  if (keys >= kBlockKeys || mutant(MaskedMhaMutant::wrong_tail)) return bits;
  return bits & ((1u << keys) - 1);
}

template <typename T>
__device__ int64_t word_count(const Inputs<T>& in) {
  const bool drops = mutant(MaskedMhaMutant::dropped_block) && in.shape.words() > 1;
  return in.shape.words() - (drops ? 1 : 0);
}

/// The first word from `word` on that has a bit in one of `rows` queries from s on, or the number
/// of words. The same in every warp.
template <typename T>
__device__ int64_t next_word(const Inputs<T>& in, int64_t b, int64_t s, int rows, int64_t word) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t words = word_count(in);
  for (; word < words; ++word) {
    uint32_t bits = 0;
    for (int r = lane; r < rows; r += kWarpSize) bits |= visible_word(in, b, s + r, word);
    if (__any_sync(kFullWarp, bits != 0)) break;
  }
  return word;
}

/// Keys [32 word, ...) of one head: [32, stride] with the rope part behind the nope part.
template <typename T>
__device__ void load_keys(const Inputs<T>& in, int64_t b, int64_t head, int64_t word, T* keys,
                          int stride) {
  const MhaShape& shape = in.shape;
  const int nope = static_cast<int>(shape.nope), rope = static_cast<int>(shape.rope);
  const int64_t first = word * kBlockKeys;
  const auto row_of = [&](int r) { return first + r < shape.keys ? first + r : -1; };
  load_tile(keys, stride,
            {in.k_nope + (b * shape.keys * shape.heads + head) * nope, shape.heads * nope, nope,
             nope, in.vectors},
            kBlockKeys, row_of);
  load_tile(
      keys + nope, stride,
      {in.k_rope + b * shape.keys * rope, rope, rope, padded_width(nope + rope) - nope, in.vectors},
      kBlockKeys, row_of);
}

template <typename T>
__device__ void load_values(const Inputs<T>& in, int64_t b, int64_t head, int64_t word, T* values,
                            int stride) {
  const MhaShape& shape = in.shape;
  const int width = static_cast<int>(shape.value);
  const int64_t first = word * kBlockKeys;
  load_tile(values, stride,
            {in.v + (b * shape.keys * shape.heads + head) * width, shape.heads * width, width,
             padded_width(width), in.vectors},
            kBlockKeys, [&](int r) { return first + r < shape.keys ? first + r : -1; });
}

/// Rows of queries [s, ...) of one head from `from` [B,S,H,width].
template <typename T>
__device__ void load_queries(const Inputs<T>& in, const T* from, int width, int64_t b, int64_t head,
                             int64_t s, int rows, T* tile, int stride) {
  const MhaShape& shape = in.shape;
  load_tile(tile, stride,
            {from + (b * shape.queries * shape.heads + head) * width, shape.heads * width, width,
             padded_width(width), in.vectors},
            rows, [&](int r) { return s + r < shape.queries ? s + r : -1; });
}

/// Offsets in bytes of what a forward block keeps in shared memory; it starts with q.
template <typename T>
struct ForwardMemory {
  int stride, value_stride, probs_stride;
  size_t keys, keys_stage, values, values_stage, probs, scores, softmax, bytes;

  DSV32_HOST_DEVICE ForwardMemory(int rows, int width, int value)
      : stride(tile_stride<T>(width)),
        value_stride(tile_stride<T>(value)),
        probs_stride(tile_stride<T>(kBlockKeys)) {
    keys = sizeof(T) * rows * stride;              // after q [rows, stride]
    keys_stage = sizeof(T) * kBlockKeys * stride;  // [32, stride], two stages
    values = keys + 2 * keys_stage;                // [32, value_stride], two stages
    values_stage = sizeof(T) * kBlockKeys * value_stride;
    probs = values + 2 * values_stage;                 // [rows, probs_stride]
    scores = probs + sizeof(T) * rows * probs_stride;  // [rows, kScoreStride] float32
    softmax = scores + sizeof(float) * rows * kScoreStride;
    bytes = softmax + sizeof(float) * rows * 3;
  }
};

template <typename T>
struct Forward {
  Inputs<T> in;
  T* out;
  float* lse;
  float scale;
};

/// Block (tile of queries, head, batch). While one block of keys is worked on, the next one is on
/// its way.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1) masked_mha_kernel(Forward<T> p) {
  constexpr int kRowTiles = kQueryTiles<T>;
  constexpr int kRows = kRowTiles * kTileRows;
  const MhaShape& shape = p.in.shape;
  const int width = static_cast<int>(shape.width()), value = static_cast<int>(shape.value);
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kRows, head = blockIdx.y, b = blockIdx.z;
  const int warp = threadIdx.x / kWarpSize;

  const ForwardMemory<T> memory(kRows, width, value);
  T* q = shared_memory<T>();
  T* probs = shared_memory<T>(memory.probs);
  float* scores = shared_memory<float>(memory.scores);
  const SoftmaxRows softmax = softmax_rows(shared_memory<float>(memory.softmax), kRows);
  const auto load_block = [&](int64_t word, int stage) {
    load_keys(p.in, b, head, word, shared_memory<T>(memory.keys + stage * memory.keys_stage),
              memory.stride);
    load_values(p.in, b, head, word, shared_memory<T>(memory.values + stage * memory.values_stage),
                memory.value_stride);
  };

  start_softmax(softmax, kRows);
  load_queries(p.in, p.in.q, width, b, head, s, kRows, q, memory.stride);
  const int64_t words = word_count(p.in);
  int64_t word = next_word(p.in, b, s, kRows, 0);
  if (word < words) load_block(word, 0);
  cp_async_commit();

  Piece sum[kColumnTiles][kRowTiles] = {};
  for (int stage = 0; word < words; stage ^= 1) {
    const int64_t following = next_word(p.in, b, s, kRows, word + 1);
    if (following < words) load_block(following, stage ^ 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();

    const T* keys = shared_memory<T>(memory.keys + stage * memory.keys_stage);
    const T* values = shared_memory<T>(memory.values + stage * memory.values_stage);
    for (int tile = warp; tile < kRowTiles * 4; tile += kAttentionWarps) {
      const int row = tile % kRowTiles * kTileRows, key = tile / kRowTiles * kTileColumns;
      Piece score{};
      multiply_rows(score, q + row * memory.stride, memory.stride, keys + key * memory.stride,
                    memory.stride, width);
      for (int i = 0; i < 4; ++i) {
        scores[(row + piece_row(i)) * kScoreStride + key + piece_column(i)] = score.lane[i];
      }
    }
    if (!mutant(AttentionMutant::missing_barrier)) __syncthreads();
    const int own_row = mutant(MaskedMhaMutant::wrong_word) ? 0 : softmax_row<kRows>();
    softmax_block<T, kRows>(scores, probs, memory.probs_stride, softmax, p.scale,
                            visible_word(p.in, b, s + own_row, word));
    __syncthreads();
    rescale_rows(sum, softmax.rescale);
    multiply_columns(sum, probs, memory.probs_stride, values, memory.value_stride, value);
    __syncthreads();
    word = following;
  }

  cp_async_wait<0>();
  __syncthreads();
  const int64_t row0 = (b * shape.queries + s) * shape.heads + head;
  const int rows = static_cast<int>(min(shape.queries - s, static_cast<int64_t>(kRows)));
  for (int row = threadIdx.x; row < rows; row += kAttentionThreads) {
    p.lse[row0 + row * shape.heads] = log_sum_exp(softmax, row);
  }
  DSV32_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    const int column0 = kTileColumns * (warp + kAttentionWarps * j);
    DSV32_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      for (int i = 0; i < 4; ++i) {
        const int row = m * kTileRows + piece_row(i), column = column0 + piece_column(i);
        if (row >= rows || column >= value) continue;
        const float total = softmax.sum[row];
        const float mean = total == 0 ? 0.0f : sum[j][m].lane[i] / total;
        p.out[(row0 + row * shape.heads) * value + column] = from_float<T>(mean);
      }
    }
  }
}

/// delta[row] = dout . out over [B,S,H] rows, a warp per row.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads) delta_kernel(MaskedMhaBackwardParams<T> p) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t rows = p.shape.batch * p.shape.queries * p.shape.heads, value = p.shape.value;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kAttentionWarps + warp;
  if (row >= rows) return;
  float dot = 0;
  for (int64_t c = lane; c < value; c += kWarpSize) {
    dot += to_float(p.dout[row * value + c]) * to_float(p.out[row * value + c]);
  }
  dot = warp_sum(dot);
  if (lane == 0) p.delta[row] = dot;
}

template <typename T>
struct Backward {
  Inputs<T> in;
  MaskedMhaBackwardParams<T> p;
};

/// The tiles that meet in a block of the backward; all but `dscores` are inputs.
template <typename T>
struct GradientMemory {
  int stride, value_stride, dscores_stride;
  size_t keys, values, dout, dscores, probs, bytes;

  DSV32_HOST_DEVICE GradientMemory(int rows, int width, int value)
      : stride(tile_stride<T>(width)),
        value_stride(tile_stride<T>(value)),
        dscores_stride(tile_stride<T>(kBlockKeys)) {
    keys = sizeof(T) * rows * stride;                       // after q [rows, stride]
    values = keys + sizeof(T) * kBlockKeys * stride;        // after keys [32, stride]
    dout = values + sizeof(T) * kBlockKeys * value_stride;  // after values [32, value_stride]
    dscores = dout + sizeof(T) * rows * value_stride;       // after dout [rows, value_stride]
    probs = dscores + sizeof(T) * rows * dscores_stride;    // dscores and probs: 32 columns
    bytes = probs + sizeof(T) * rows * dscores_stride;
  }
};

/// Calls take(row, key, prob, dscore) for the elements of this warp's pieces of a block of `rows`
/// queries from s on and the keys of a word.
template <typename T, typename Take>
__device__ void for_each_gradient(const Backward<T>& backward, const GradientMemory<T>& memory,
                                  int64_t b, int64_t head, int64_t s, int64_t word, int row_tiles,
                                  Take take) {
  const MhaShape& shape = backward.in.shape;
  const MaskedMhaBackwardParams<T>& p = backward.p;
  const T* q = shared_memory<T>();
  const T* keys = shared_memory<T>(memory.keys);
  const T* values = shared_memory<T>(memory.values);
  const T* dout = shared_memory<T>(memory.dout);
  const int warp = threadIdx.x / kWarpSize;
  for (int tile = warp; tile < row_tiles * 4; tile += kAttentionWarps) {
    const int row = tile % row_tiles * kTileRows, key = tile / row_tiles * kTileColumns;
    Piece score{}, dprob{};
    multiply_rows(score, q + row * memory.stride, memory.stride, keys + key * memory.stride,
                  memory.stride, static_cast<int>(shape.width()));
    multiply_rows(dprob, dout + row * memory.value_stride, memory.value_stride,
                  values + key * memory.value_stride, memory.value_stride,
                  static_cast<int>(shape.value));
    for (int i = 0; i < 4; ++i) {
      const int r = row + piece_row(i), k = key + piece_column(i);
      const bool sees = (visible_word(backward.in, b, s + r, word) >> k & 1u) != 0;
      const int64_t at = (b * shape.queries + s + r) * shape.heads + head;
      const float prob = sees ? expf(p.scale * score.lane[i] - p.lse[at]) : 0.0f;
      const float factor = mutant(MaskedMhaMutant::wrong_scale) ? 1.0f : p.scale;
      const float slope = sees ? dprob.lane[i] - p.delta[at] : 0.0f;
      take(r, k, prob, factor * prob * slope);
    }
  }
}

/// Block (tile of queries, head, batch).
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    query_gradient_kernel(Backward<T> backward) {
  constexpr int kRowTiles = kQueryTiles<T>;
  constexpr int kRows = kRowTiles * kTileRows;
  const Inputs<T>& in = backward.in;
  const MhaShape& shape = in.shape;
  const int width = static_cast<int>(shape.width()), value = static_cast<int>(shape.value);
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kRows, head = blockIdx.y, b = blockIdx.z;

  const GradientMemory<T> memory(kRows, width, value);
  T* keys = shared_memory<T>(memory.keys);
  T* dscores = shared_memory<T>(memory.dscores);
  load_queries(in, in.q, width, b, head, s, kRows, shared_memory<T>(), memory.stride);
  load_queries(in, backward.p.dout, value, b, head, s, kRows, shared_memory<T>(memory.dout),
               memory.value_stride);

  Piece dq[kColumnTiles][kRowTiles] = {};
  const int64_t words = word_count(in);
  for (int64_t word = next_word(in, b, s, kRows, 0); word < words;
       word = next_word(in, b, s, kRows, word + 1)) {
    load_keys(in, b, head, word, keys, memory.stride);
    load_values(in, b, head, word, shared_memory<T>(memory.values), memory.value_stride);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for_each_gradient(backward, memory, b, head, s, word, kRowTiles,
                      [&](int row, int key, float, float dscore) {
                        dscores[row * memory.dscores_stride + key] = from_float<T>(dscore);
                      });
    __syncthreads();
    multiply_columns(dq, dscores, memory.dscores_stride, keys, memory.stride, width);
    __syncthreads();
  }

  cp_async_wait<0>();
  const int warp = threadIdx.x / kWarpSize;
  DSV32_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    const int column0 = kTileColumns * (warp + kAttentionWarps * j);
    DSV32_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      for (int i = 0; i < 4; ++i) {
        const int64_t query = s + m * kTileRows + piece_row(i);
        const int column = column0 + piece_column(i);
        if (query >= shape.queries || column >= width) continue;
        const int64_t row = (b * shape.queries + query) * shape.heads + head;
        backward.p.dq[row * width + column] = from_float<T>(dq[j][m].lane[i]);
      }
    }
  }
}

/// Block (word of keys, head, batch): the queries pass by, 32 at a time. dscores and probs have
/// keys as rows here.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads, 1) key_gradient_kernel(Backward<T> backward) {
  const Inputs<T>& in = backward.in;
  const MaskedMhaBackwardParams<T>& p = backward.p;
  const MhaShape& shape = in.shape;
  const int width = static_cast<int>(shape.width()), value = static_cast<int>(shape.value);
  const int nope = static_cast<int>(shape.nope), rope = static_cast<int>(shape.rope);
  const int64_t word = blockIdx.x, head = blockIdx.y, b = blockIdx.z;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;

  const GradientMemory<T> memory(kBlockKeys, width, value);
  T* q = shared_memory<T>();
  T* dout = shared_memory<T>(memory.dout);
  T* dscores = shared_memory<T>(memory.dscores);
  T* probs = shared_memory<T>(memory.probs);
  load_keys(in, b, head, word, shared_memory<T>(memory.keys), memory.stride);
  load_values(in, b, head, word, shared_memory<T>(memory.values), memory.value_stride);

  Piece dk[kColumnTiles][kKeyTiles] = {}, dv[kColumnTiles][kKeyTiles] = {};
  const int64_t queries =
      mutant(MaskedMhaMutant::skipped_rows) ? shape.queries - kBlockKeys : shape.queries;
  for (int64_t s = 0; s < queries; s += kBlockKeys) {
    if (!__any_sync(kFullWarp, visible_word(in, b, s + lane, word) != 0)) continue;
    load_queries(in, in.q, width, b, head, s, kBlockKeys, q, memory.stride);
    load_queries(in, p.dout, value, b, head, s, kBlockKeys, dout, memory.value_stride);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    for_each_gradient(backward, memory, b, head, s, word, kKeyTiles,
                      [&](int row, int key, float prob, float dscore) {
                        dscores[key * memory.dscores_stride + row] = from_float<T>(dscore);
                        probs[key * memory.dscores_stride + row] = from_float<T>(prob);
                      });
    __syncthreads();
    multiply_columns(dk, dscores, memory.dscores_stride, q, memory.stride, width);
    multiply_columns(dv, probs, memory.dscores_stride, dout, memory.value_stride, value);
    __syncthreads();
  }

  cp_async_wait<0>();
  DSV32_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    const int column0 = kTileColumns * (warp + kAttentionWarps * j);
    DSV32_UNROLL
    for (int m = 0; m < kKeyTiles; ++m) {
      for (int i = 0; i < 4; ++i) {
        const int64_t key = word * kBlockKeys + m * kTileRows + piece_row(i);
        const int column = column0 + piece_column(i);
        if (key >= shape.keys) continue;
        const int64_t row = (b * shape.keys + key) * shape.heads + head;
        if (column < value) p.dv[row * value + column] = from_float<T>(dv[j][m].lane[i]);
        if (column < nope) {
          p.dk_nope[row * nope + column] = from_float<T>(dk[j][m].lane[i]);
        } else if (column < width) {
          p.dk_rope_heads[row * rope + column - nope] = dk[j][m].lane[i];
        }
      }
    }
  }
}

/// dk_rope[b,t] = sum over heads, one thread per element.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads)
    sum_heads_kernel(MaskedMhaBackwardParams<T> p) {
  const MhaShape& shape = p.shape;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAttentionThreads + threadIdx.x;
  if (i >= shape.batch * shape.keys * shape.rope) return;
  const int64_t token = i / shape.rope, column = i % shape.rope;
  const int64_t heads = shape.heads - (mutant(MaskedMhaMutant::dropped_head) ? 1 : 0);
  float sum = 0;
  for (int64_t head = 0; head < heads; ++head) {
    sum += p.dk_rope_heads[(token * shape.heads + head) * shape.rope + column];
  }
  p.dk_rope[i] = from_float<T>(sum);
}

template <typename T, typename Params>
Inputs<T> inputs_of(const Params& p, bool dout_is_aligned) {
  const MhaShape& shape = p.shape;
  const auto is_whole = [](int64_t width) { return width % kVectorWidth<T> == 0; };
  const bool vectors = is_whole(shape.nope) && is_whole(shape.rope) && is_whole(shape.value) &&
                       is_vector_aligned(p.q) && is_vector_aligned(p.k_nope) &&
                       is_vector_aligned(p.k_rope) && is_vector_aligned(p.v) && dout_is_aligned;
  return {p.q, p.k_nope, p.k_rope, p.v, p.support, shape, vectors};
}

dim3 grid_of(int64_t count, int64_t per_block, const MhaShape& shape) {
  return dim3(static_cast<unsigned>(ceil_div(count, per_block)), static_cast<unsigned>(shape.heads),
              static_cast<unsigned>(shape.batch));
}

}  // namespace

template <typename T>
void launch_masked_mha(const MaskedMhaParams<T>& p, Stream stream) {
  const MhaShape& shape = p.shape;
  if (shape.batch * shape.queries * shape.heads == 0) return;
  constexpr int kRows = kQueryTiles<T> * kTileRows;
  const ForwardMemory<T> memory(kRows, static_cast<int>(shape.width()),
                                static_cast<int>(shape.value));
  launch(masked_mha_kernel<T>,
         {.name = "masked_mha",
          .grid = grid_of(shape.queries, kRows, shape),
          .block = kAttentionThreads,
          .shared_bytes = memory.bytes},
         stream, Forward<T>{inputs_of<T>(p, /*dout_is_aligned=*/true), p.out, p.lse, p.scale});
}

template <typename T>
void launch_masked_mha_backward(const MaskedMhaBackwardParams<T>& p, Stream stream) {
  const MhaShape& shape = p.shape;
  if (shape.batch * shape.heads == 0) return;
  const int width = static_cast<int>(shape.width()), value = static_cast<int>(shape.value);
  const Backward<T> backward{inputs_of<T>(p, is_vector_aligned(p.dout)), p};
  if (shape.queries > 0) {
    constexpr int kRows = kQueryTiles<T> * kTileRows;
    const int64_t rows = shape.batch * shape.queries * shape.heads;
    launch(delta_kernel<T>,
           {.name = "masked_mha_delta",
            .grid = static_cast<unsigned>(ceil_div<int64_t>(rows, kAttentionWarps)),
            .block = kAttentionThreads},
           stream, p);
    launch(query_gradient_kernel<T>,
           {.name = "masked_mha_query_gradient",
            .grid = grid_of(shape.queries, kRows, shape),
            .block = kAttentionThreads,
            .shared_bytes = GradientMemory<T>(kRows, width, value).bytes},
           stream, backward);
  }
  if (shape.keys == 0) return;
  launch(key_gradient_kernel<T>,
         {.name = "masked_mha_key_gradient",
          .grid = grid_of(shape.keys, kBlockKeys, shape),
          .block = kAttentionThreads,
          .shared_bytes = GradientMemory<T>(kBlockKeys, width, value).bytes},
         stream, backward);
  const int64_t elements = shape.batch * shape.keys * shape.rope;
  if (elements == 0) return;
  launch(sum_heads_kernel<T>,
         {.name = "masked_mha_sum_heads",
          .grid = static_cast<unsigned>(ceil_div<int64_t>(elements, kAttentionThreads)),
          .block = kAttentionThreads},
         stream, p);
}

template void launch_masked_mha(const MaskedMhaParams<float>&, Stream);
template void launch_masked_mha(const MaskedMhaParams<bf16>&, Stream);
template void launch_masked_mha_backward(const MaskedMhaBackwardParams<float>&, Stream);
template void launch_masked_mha_backward(const MaskedMhaBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
