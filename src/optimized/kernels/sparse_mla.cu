#include "src/optimized/kernels/attention_tile.h"
#include "src/optimized/kernels/reduce.h"
#include "src/optimized/kernels/sparse_mla.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

// 8 warps of 9 tiles of 8 columns.
constexpr int kColumnTiles = 9;
static_assert(kColumnTiles * kAttentionWarps * kTileColumns == kMaxMlaWidth);

/// Slots that may hold a key of query s.
__device__ int64_t slot_count(const KeyLists& lists, int64_t s) {
  if (!lists.is_dense) {
    return mutant(SparseMlaMutant::wrong_tail) ? lists.slots - 1 : lists.slots;
  }
  const int64_t end = lists.first_query + s + (mutant(SparseMlaMutant::off_by_one) ? 2 : 1);
  return end < lists.slots ? end : lists.slots;
}

/// The key in a slot of query (b, s), or -1.
__device__ int key_at(const KeyLists& lists, const MlaShape& shape, int64_t b, int64_t s,
                      int64_t slot) {
  if (slot >= slot_count(lists, s)) return -1;
  if (lists.is_dense) {
    return lists.mask[b * shape.keys + slot] ? static_cast<int>(slot) : -1;
  }
  const int key = lists.topk[(b * shape.queries + s) * lists.slots + slot];
  return key < shape.keys ? key : -1;
}

/// The blocks of 32 slots of one query; the same in every thread but for `key`.
struct KeyBlock {
  int64_t number;
  int key;           // of this lane, or -1
  uint32_t visible;  // bit per slot
};

/// The first block from `number` on that has a key; its number is `blocks` when there is none.
__device__ KeyBlock next_block(const KeyLists& lists, const MlaShape& shape, int64_t b, int64_t s,
                               int64_t number, int64_t blocks) {
  const int lane = threadIdx.x % kWarpSize;
  for (; number < blocks; ++number) {
    const int key = key_at(lists, shape, b, s, number * kBlockKeys + lane);
    const uint32_t visible = __ballot_sync(kFullWarp, key >= 0);
    if (visible != 0) return {number, key, visible};
  }
  return {blocks, -1, 0};
}

__device__ int64_t block_count(const KeyLists& lists, int64_t s) {
  const int64_t blocks = ceil_div<int64_t>(slot_count(lists, s), kBlockKeys);
  return mutant(SparseMlaMutant::dropped_block) && blocks > 1 ? blocks - 1 : blocks;
}

template <typename T>
struct Forward {
  SparseMlaParams<T> p;
  bool vectors;  // rows may be read in 16-byte loads
};

/// Offsets in bytes of what a block keeps in shared memory.
template <typename T>
struct ForwardMemory {
  int stride;
  int probs_stride;
  size_t kv;
  size_t kv_stage;  // bytes of one of the two stages
  size_t probs;
  size_t scores;
  size_t softmax;
  size_t bytes;

  DSV32_HOST_DEVICE ForwardMemory(int rows, int width)
      : stride(tile_stride<T>(width)), probs_stride(tile_stride<T>(kBlockKeys)) {
    kv = sizeof(T) * rows * stride;                    // after q [rows, stride]
    kv_stage = sizeof(T) * kBlockKeys * stride;        // [32, stride]
    probs = kv + 2 * kv_stage;                         // [rows, probs_stride]
    scores = probs + sizeof(T) * rows * probs_stride;  // [rows, kScoreStride] float32
    softmax = scores + sizeof(float) * rows * kScoreStride;
    bytes = softmax + sizeof(float) * rows * 3;
  }
};

/// Block (query, head tile): the heads are the rows, all of which see the same keys. While one
/// block of keys is worked on, the next one is on its way.
template <typename T, int kRowTiles>
__global__ void __launch_bounds__(kAttentionThreads, 1) sparse_mla_kernel(Forward<T> forward) {
  constexpr int kRows = kRowTiles * kTileRows;
  const SparseMlaParams<T>& p = forward.p;
  const MlaShape& shape = p.shape;
  const int width = static_cast<int>(shape.width), lora = static_cast<int>(shape.kv_lora);
  const int64_t b = blockIdx.x / shape.queries, s = blockIdx.x % shape.queries;
  const int64_t head = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t row0 = blockIdx.x * shape.heads + head;
  const int heads = static_cast<int>(min(shape.heads - head, static_cast<int64_t>(kRows)));
  const int warp = threadIdx.x / kWarpSize;

  const ForwardMemory<T> memory(kRows, width);
  T* q = shared_memory<T>();
  T* probs = shared_memory<T>(memory.probs);
  float* scores = shared_memory<float>(memory.scores);
  const SoftmaxRows softmax = softmax_rows(shared_memory<float>(memory.softmax), kRows);
  const auto load_keys = [&](const KeyBlock& block, int stage) {
    load_tile(shared_memory<T>(memory.kv + stage * memory.kv_stage), memory.stride,
              {p.kv + b * shape.keys * width, width, width, padded_width(width), forward.vectors},
              kBlockKeys, [&](int r) { return __shfl_sync(kFullWarp, block.key, r); });
  };

  start_softmax(softmax, kRows);
  load_tile(q, memory.stride,
            {p.q + row0 * width, width, width, padded_width(width), forward.vectors}, kRows,
            [&](int r) { return r < heads ? r : -1; });
  const int64_t blocks = block_count(p.lists, s);
  KeyBlock block = next_block(p.lists, shape, b, s, 0, blocks);
  if (block.number < blocks) load_keys(block, 0);
  cp_async_commit();

  Piece sum[kColumnTiles][kRowTiles] = {};
  for (int stage = 0; block.number < blocks; stage ^= 1) {
    const KeyBlock following = next_block(p.lists, shape, b, s, block.number + 1, blocks);
    if (following.number < blocks) load_keys(following, stage ^ 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();

    const T* keys = shared_memory<T>(memory.kv + stage * memory.kv_stage);
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
    softmax_block<T, kRows>(scores, probs, memory.probs_stride, softmax, p.scale, block.visible);
    __syncthreads();
    rescale_rows(sum, softmax.rescale);
    multiply_columns(sum, probs, memory.probs_stride, keys, memory.stride, lora);
    __syncthreads();
    block = following;
  }

  cp_async_wait<0>();
  __syncthreads();
  for (int row = threadIdx.x; row < heads; row += kAttentionThreads) {
    p.lse[row0 + row] = log_sum_exp(softmax, row);
  }
  DSV32_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    const int column0 = kTileColumns * (warp + kAttentionWarps * j);
    DSV32_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      for (int i = 0; i < 4; ++i) {
        const int row = m * kTileRows + piece_row(i), column = column0 + piece_column(i);
        if (row >= heads || column >= lora) continue;
        const float total = softmax.sum[row];
        const float value = total == 0 ? 0.0f : sum[j][m].lane[i] / total;
        p.out[(row0 + row) * lora + column] = from_float<T>(value);
      }
    }
  }
}

template <typename T>
struct BackwardMemory {
  int stride;
  int dout_stride;
  int keys_stride;   // of a tile whose rows are heads
  int heads_stride;  // of a tile whose rows are keys
  size_t kv;
  size_t dout;
  size_t dscores;
  size_t dscores_by_key;
  size_t probs_by_key;
  size_t rows;
  size_t bytes;

  DSV32_HOST_DEVICE BackwardMemory(int heads, int width, int lora)
      : stride(tile_stride<T>(width)),
        dout_stride(tile_stride<T>(lora)),
        keys_stride(tile_stride<T>(kBlockKeys)),
        heads_stride(tile_stride<T>(heads)) {
    kv = sizeof(T) * heads * stride;                             // after q [heads, stride]
    dout = kv + sizeof(T) * kBlockKeys * stride;                 // [heads, dout_stride]
    dscores = dout + sizeof(T) * heads * dout_stride;            // [heads, keys_stride]
    dscores_by_key = dscores + sizeof(T) * heads * keys_stride;  // [32, heads_stride]
    probs_by_key = dscores_by_key + sizeof(T) * kBlockKeys * heads_stride;
    rows = probs_by_key + sizeof(T) * kBlockKeys * heads_stride;  // lse, delta: [heads] float32
    bytes = rows + sizeof(float) * heads * 2;
  }
};

template <typename T>
struct BackwardChunk {
  SparseMlaBackwardParams<T> p;
  int64_t b;
  int64_t first;  // query
  bool is_first;
  bool is_last;
  bool vectors;  // rows may be read in 16-byte loads
};

/// delta[row] = dout . out, a warp per row; also reads lse.
template <typename T>
__device__ void load_row_terms(const SparseMlaBackwardParams<T>& p, int64_t row0, int heads,
                               int rows, float* lse, float* delta) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t lora = p.shape.kv_lora;
  for (int row = warp; row < rows; row += kAttentionWarps) {
    float dot = 0;
    if (row < heads) {
      const int64_t start = (row0 + row) * lora;
      for (int64_t c = lane; c < lora; c += kWarpSize) {
        dot += to_float(p.dout[start + c]) * to_float(p.out[start + c]);
      }
    }
    dot = warp_sum(dot);
    if (lane != 0) continue;
    lse[row] = row < heads ? p.lse[row0 + row] : 0.0f;
    delta[row] = dot;
  }
}

/// Block (query of the chunk, head tile).
template <typename T, int kRowTiles>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    sparse_mla_backward_kernel(BackwardChunk<T> chunk) {
  constexpr int kRows = kRowTiles * kTileRows;
  const SparseMlaBackwardParams<T>& p = chunk.p;
  const MlaShape& shape = p.shape;
  const int width = static_cast<int>(shape.width), lora = static_cast<int>(shape.kv_lora);
  const int64_t b = chunk.b, s = chunk.first + blockIdx.x;
  const int64_t head = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t row0 = (b * shape.queries + s) * shape.heads + head;
  const int heads = static_cast<int>(min(shape.heads - head, static_cast<int64_t>(kRows)));
  const int warp = threadIdx.x / kWarpSize;

  const BackwardMemory<T> memory(kRows, width, lora);
  T* q = shared_memory<T>();
  T* keys = shared_memory<T>(memory.kv);
  T* dout = shared_memory<T>(memory.dout);
  T* dscores = shared_memory<T>(memory.dscores);
  T* dscores_by_key = shared_memory<T>(memory.dscores_by_key);
  T* probs_by_key = shared_memory<T>(memory.probs_by_key);
  float* lse = shared_memory<float>(memory.rows);
  float* delta = lse + kRows;
  const bool vectors = chunk.vectors;
  const auto head_row = [&](int r) { return r < heads ? r : -1; };
  load_tile(q, memory.stride, {p.q + row0 * width, width, width, padded_width(width), vectors},
            kRows, head_row);
  load_tile(dout, memory.dout_stride,
            {p.dout + row0 * lora, lora, lora, padded_width(lora), vectors}, kRows, head_row);
  load_row_terms(p, row0, heads, kRows, lse, delta);

  Piece dq[kColumnTiles][kRowTiles] = {};
  const int64_t blocks = block_count(p.lists, s);
  KeyBlock block = next_block(p.lists, shape, b, s, 0, blocks);
  while (block.number < blocks) {
    load_tile(keys, memory.stride,
              {p.kv + b * shape.keys * width, width, width, padded_width(width), vectors},
              kBlockKeys, [&](int r) { return __shfl_sync(kFullWarp, block.key, r); });
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();

    for (int tile = warp; tile < kRowTiles * 4; tile += kAttentionWarps) {
      const int row = tile % kRowTiles * kTileRows, key = tile / kRowTiles * kTileColumns;
      Piece score{}, dprob{};
      multiply_rows(score, q + row * memory.stride, memory.stride, keys + key * memory.stride,
                    memory.stride, width);
      multiply_rows(dprob, dout + row * memory.dout_stride, memory.dout_stride,
                    keys + key * memory.stride, memory.stride, lora);
      for (int i = 0; i < 4; ++i) {
        const int r = row + piece_row(i), k = key + piece_column(i);
        const bool sees = r < heads && (block.visible >> k & 1u) != 0;
        const float prob = sees ? expf(p.scale * score.lane[i] - lse[r]) : 0.0f;
        const float factor = mutant(SparseMlaMutant::wrong_scale) ? 1.0f : p.scale;
        const T dscore = from_float<T>(factor * prob * (dprob.lane[i] - delta[r]));
        dscores[r * memory.keys_stride + k] = dscore;
        dscores_by_key[k * memory.heads_stride + r] = dscore;
        probs_by_key[k * memory.heads_stride + r] = from_float<T>(prob);
      }
    }
    __syncthreads();

    multiply_columns(dq, dscores, memory.keys_stride, keys, memory.stride, width);
    for (int column0 = kTileColumns * warp; column0 < width;
         column0 += kTileColumns * kAttentionWarps) {
      Piece dkv[kBlockKeys / kTileRows] = {};
      for (int h = 0; h < kRows; h += kDepth) {
        const Right<T> q_piece = load_right(q + h * memory.stride + column0, memory.stride);
        Right<T> dout_piece = q_piece;
        const bool is_value = column0 < lora;
        if (is_value) {
          dout_piece = load_right(dout + h * memory.dout_stride + column0, memory.dout_stride);
        }
        for (int m = 0; m < kBlockKeys / kTileRows; ++m) {
          const int at = m * kTileRows * memory.heads_stride + h;
          multiply_add(dkv[m], load_left(dscores_by_key + at, memory.heads_stride), q_piece);
          if (!is_value) continue;
          multiply_add(dkv[m], load_left(probs_by_key + at, memory.heads_stride), dout_piece);
        }
      }
      for (int m = 0; m < kBlockKeys / kTileRows; ++m) {
        for (int i = 0; i < 4; ++i) {
          const int k = m * kTileRows + piece_row(i), column = column0 + piece_column(i);
          const int key = __shfl_sync(kFullWarp, block.key, k);
          if (key < 0 || column >= width) continue;
          if (p.contributions != nullptr) {
            const int64_t tile = blockIdx.x * gridDim.y + blockIdx.y;
            const int64_t slot = tile * p.lists.slots + block.number * kBlockKeys + k;
            p.contributions[slot * width + column] = dkv[m].lane[i];
          } else {
            atomicAdd(p.dkv_sum + (b * shape.keys + key) * width + column, dkv[m].lane[i]);
          }
        }
      }
    }
    __syncthreads();
    block = next_block(p.lists, shape, b, s, block.number + 1, blocks);
  }

  cp_async_wait<0>();
  DSV32_UNROLL
  for (int j = 0; j < kColumnTiles; ++j) {
    const int column0 = kTileColumns * (warp + kAttentionWarps * j);
    DSV32_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      for (int i = 0; i < 4; ++i) {
        const int row = m * kTileRows + piece_row(i), column = column0 + piece_column(i);
        if (row >= heads || column >= width) continue;
        p.dq[(row0 + row) * width + column] = from_float<T>(dq[j][m].lane[i]);
      }
    }
  }
}

/// slot_of_key[query][key] = the slot that holds it, -1 where none does. One block per query.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads) index_slots_kernel(BackwardChunk<T> chunk) {
  const SparseMlaBackwardParams<T>& p = chunk.p;
  const int64_t s = chunk.first + blockIdx.x;
  int32_t* slots = p.slot_of_key + blockIdx.x * p.shape.keys;
  for (int64_t key = threadIdx.x; key < p.shape.keys; key += kAttentionThreads) slots[key] = -1;
  __syncthreads();
  for (int64_t slot = threadIdx.x; slot < p.lists.slots; slot += kAttentionThreads) {
    const int key = key_at(p.lists, p.shape, chunk.b, s, slot);
    if (key >= 0) slots[key] = static_cast<int32_t>(slot);
  }
}

/// One block per key: adds what the queries of the chunk gave it, in their order.
template <typename T>
__global__ void __launch_bounds__(kAttentionThreads)
    sum_key_gradient_kernel(BackwardChunk<T> chunk) {
  const SparseMlaBackwardParams<T>& p = chunk.p;
  const int64_t width = p.shape.width, tiles = mla_head_tiles<T>(p.shape.heads);
  const int64_t queries = min(p.chunk, p.shape.queries - chunk.first);
  const int64_t start = (chunk.b * p.shape.keys + blockIdx.x) * width;
  for (int64_t column = threadIdx.x; column < width; column += kAttentionThreads) {
    const bool anew = chunk.is_first || mutant(SparseMlaMutant::dropped_chunk);
    float sum = anew ? 0.0f : p.dkv_sum[start + column];
    for (int64_t query = 0; query < queries; ++query) {
      const int32_t slot = p.slot_of_key[query * p.shape.keys + blockIdx.x];
      if (slot < 0) continue;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        sum += p.contributions[((query * tiles + tile) * p.lists.slots + slot) * width + column];
      }
    }
    if (chunk.is_last) {
      p.dkv[start + column] = from_float<T>(sum);
    } else {
      p.dkv_sum[start + column] = sum;
    }
  }
}

template <typename T>
bool has_whole_vectors(int64_t width) {
  return width % kVectorWidth<T> == 0;
}

template <typename T, int kRowTiles>
void launch_backward_tiles(const BackwardChunk<T>& chunk, unsigned queries, Stream stream) {
  const MlaShape& shape = chunk.p.shape;
  const BackwardMemory<T> memory(kRowTiles * kTileRows, static_cast<int>(shape.width),
                                 static_cast<int>(shape.kv_lora));
  launch(sparse_mla_backward_kernel<T, kRowTiles>,
         {.name = "sparse_mla_backward",
          .grid = dim3(queries, static_cast<unsigned>(mla_head_tiles<T>(shape.heads))),
          .block = kAttentionThreads,
          .shared_bytes = memory.bytes},
         stream, chunk);
}

template <typename T>
void launch_chunk(const BackwardChunk<T>& chunk, Stream stream) {
  const SparseMlaBackwardParams<T>& p = chunk.p;
  const int64_t left = p.shape.queries - chunk.first;
  const auto queries = static_cast<unsigned>(p.chunk < left ? p.chunk : left);
  const auto launch_tiles = [&] {
    if constexpr (kMlaMaxTileHeads<T> == 64) {
      if (p.shape.heads > 32) return launch_backward_tiles<T, 4>(chunk, queries, stream);
    }
    launch_backward_tiles<T, 2>(chunk, queries, stream);
  };
  launch_tiles();
  if (p.contributions == nullptr || p.shape.keys == 0) return;
  launch(index_slots_kernel<T>,
         {.name = "index_slots", .grid = queries, .block = kAttentionThreads}, stream, chunk);
  launch(sum_key_gradient_kernel<T>,
         {.name = "sum_key_gradient",
          .grid = static_cast<unsigned>(p.shape.keys),
          .block = kAttentionThreads},
         stream, chunk);
}

template <typename T, int kRowTiles>
void launch_forward_tiles(const SparseMlaParams<T>& p, Stream stream) {
  const ForwardMemory<T> memory(kRowTiles * kTileRows, static_cast<int>(p.shape.width));
  launch(sparse_mla_kernel<T, kRowTiles>,
         {.name = "sparse_mla",
          .grid = dim3(static_cast<unsigned>(p.shape.batch * p.shape.queries),
                       static_cast<unsigned>(mla_head_tiles<T>(p.shape.heads))),
          .block = kAttentionThreads,
          .shared_bytes = memory.bytes},
         stream,
         Forward<T>{p, has_whole_vectors<T>(p.shape.width) && is_vector_aligned(p.q) &&
                           is_vector_aligned(p.kv)});
}

}  // namespace

template <typename T>
void launch_sparse_mla(const SparseMlaParams<T>& p, Stream stream) {
  if (p.shape.batch * p.shape.queries * p.shape.heads == 0) return;
  if constexpr (kMlaMaxTileHeads<T> == 64) {
    if (p.shape.heads > 32) return launch_forward_tiles<T, 4>(p, stream);
  }
  launch_forward_tiles<T, 2>(p, stream);
}

template <typename T>
void launch_sparse_mla_backward(const SparseMlaBackwardParams<T>& p, Stream stream) {
  if (p.shape.queries * p.shape.heads == 0) return;
  const bool vectors = has_whole_vectors<T>(p.shape.width) &&
                       has_whole_vectors<T>(p.shape.kv_lora) && is_vector_aligned(p.q) &&
                       is_vector_aligned(p.kv) && is_vector_aligned(p.dout);
  for (int64_t b = 0; b < p.shape.batch; ++b) {
    for (int64_t first = 0; first < p.shape.queries; first += p.chunk) {
      launch_chunk<T>({.p = p,
                       .b = b,
                       .first = first,
                       .is_first = first == 0,
                       .is_last = first + p.chunk >= p.shape.queries,
                       .vectors = vectors},
                      stream);
    }
  }
}

template void launch_sparse_mla(const SparseMlaParams<float>&, Stream);
template void launch_sparse_mla(const SparseMlaParams<bf16>&, Stream);
template void launch_sparse_mla_backward(const SparseMlaBackwardParams<float>&, Stream);
template void launch_sparse_mla_backward(const SparseMlaBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
