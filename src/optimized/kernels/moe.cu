#include "src/optimized/kernels/moe.h"
#include "src/optimized/kernels/reduce.h"
#include "src/optimized/kernels/tile_product.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kWarps = kThreads / kWarpSize;
constexpr int32_t kWholeBatch = 0x7fffffff;  // a divisor that makes every token the first

/// Exclusive sum of `flag` over the threads of the block; `total` gets the whole sum. `scratch` is
/// shared memory for kWarps integers.
__device__ int flags_before(bool flag, int* scratch, int* total) {
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const unsigned votes = __ballot_sync(kFullWarp, flag);
  __syncthreads();  // others may still read `scratch`
  if (lane == 0) scratch[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1u));
  *total = 0;
  for (unsigned w = 0; w < kWarps; ++w) {
    if (w < warp) before += scratch[w];
    *total += scratch[w];
  }
  return before;
}

/// One block per expert.
__global__ void __launch_bounds__(kThreads) count_entries_kernel(ExpertSort p) {
  int* scratch = shared_memory<int>();
  const int expert = static_cast<int>(blockIdx.x);
  int count = 0;
  for (int64_t start = 0; start < p.entries(); start += kThreads) {
    const int64_t entry = start + threadIdx.x;
    int part = 0;
    flags_before(entry < p.entries() && p.chosen[entry] == expert, scratch, &part);
    count += part;
  }
  if (threadIdx.x == 0) p.counts[expert] = count;
}

/// One block per expert, in the order of entries: the sort is stable.
__global__ void __launch_bounds__(kThreads) place_entries_kernel(ExpertSort p) {
  int* scratch = shared_memory<int>();
  const int expert = static_cast<int>(blockIdx.x);
  int offset = 0, tile = 0;
  for (int e = 0; e < expert; ++e) {
    offset += p.counts[e];
    tile += ceil_div(p.counts[e], kTile);
  }
  const int count = p.counts[expert];
  if (threadIdx.x == 0) {
    p.offsets[expert] = offset;
    p.tiles[expert] = tile;
    if (expert == p.experts - 1) {
      p.offsets[p.experts] = offset + count;
      p.tiles[p.experts] = tile + ceil_div(count, kTile);
    }
  }
  int placed = 0;
  for (int64_t start = 0; start < p.entries(); start += kThreads) {
    const int64_t entry = start + threadIdx.x;
    const bool mine = entry < p.entries() && p.chosen[entry] == expert;
    int part = 0;
    const int before = placed + flags_before(mine, scratch, &part);
    placed += part;
    if (!mine) continue;
    const int position = offset + (mutant(MoeMutant::unstable_sort) ? count - 1 - before : before);
    p.order[position] = static_cast<int32_t>(entry);
    p.position[entry] = position;
  }
}

void launch_sort(const ExpertSort& sort, Stream stream) {
  const auto blocks = static_cast<unsigned>(sort.experts);
  launch(count_entries_kernel,
         {.name = "moe_count",
          .grid = blocks,
          .block = kThreads,
          .shared_bytes = kWarps * sizeof(int)},
         stream, sort);
  launch(place_entries_kernel,
         {.name = "moe_place",
          .grid = blocks,
          .block = kThreads,
          .shared_bytes = kWarps * sizeof(int)},
         stream, sort);
}

/// The expert and the positions [begin, end) of tile `tile`; expert -1 behind the last tile.
struct TileRows {
  int expert, begin, end;
};

__device__ TileRows find_tile(const ExpertSort& sort, int tile) {
  if (tile >= sort.tiles[sort.experts]) return {-1, 0, 0};
  int low = 0, high = static_cast<int>(sort.experts) - 1;  // the last expert with tiles[e] <= tile
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (sort.tiles[middle] <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  if (mutant(MoeMutant::dropped_expert) && sort.offsets[low + 1] == sort.offsets[sort.experts]) {
    return {-1, 0, 0};
  }
  return {low, sort.offsets[low] + (tile - sort.tiles[low]) * kTile, sort.offsets[low + 1]};
}

/// Rows of a [tokens, width] tensor by position.
template <typename T>
__device__ Operand<T> token_rows(const ExpertSort& sort, const T* base, int begin, int end,
                                 int64_t width) {
  const int32_t divisor =
      mutant(MoeMutant::lost_gather) ? kWholeBatch : static_cast<int32_t>(sort.k);
  return {base, width, end - begin, width, true, sort.order + begin, divisor};
}

/// Rows [begin, end) of a [entries, width] tensor.
template <typename T>
__device__ Operand<T> position_rows(const T* base, int begin, int end, int64_t width) {
  return {base + begin * width, width, end - begin, width, true, nullptr, 1};
}

/// A [rows, depth] matrix.
template <typename T>
__device__ Operand<T> matrix(const T* base, int64_t rows, int64_t depth) {
  return {base, depth, rows, depth, true, nullptr, 1};
}

/// The same memory with rows and depth exchanged.
template <typename T>
__device__ Operand<T> transposed(Operand<T> operand) {
  const int64_t rows = operand.rows;
  operand.rows = operand.depth;
  operand.depth = rows;
  operand.depth_is_inner = false;
  return operand;
}

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// One block per 64 positions of an expert and 64 columns of the width.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) moe_inner_kernel(MoeParams<T> p) {
  const TileRows rows = find_tile(p.sort, static_cast<int>(blockIdx.x));
  if (rows.expert < 0) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile;
  const bool swapped = mutant(MoeMutant::swapped_weights);
  const T* const* gate = swapped ? p.up : p.gate;
  const T* const* up = swapped ? p.gate : p.up;
  T* tiles = shared_memory<T>();
  const Operand<T> x = token_rows(p.sort, p.x, rows.begin, rows.end, p.hidden);
  float gated[kTileSums] = {}, upped[kTileSums] = {};
  add_tile_product(x, 0, matrix(gate[rows.expert], p.width, p.hidden), column, tiles, gated);
  add_tile_product(x, 0, matrix(up[rows.expert], p.width, p.hidden), column, tiles, upped);
  for (int i = 0; i < kTileSums; ++i) {
    const TileElement at = tile_element<T>(i);
    if (rows.begin + at.row >= rows.end || column + at.column >= p.width) continue;
    const int64_t index = (rows.begin + at.row) * p.width + column + at.column;
    p.inner[index] = from_float<T>(gated[i] * sigmoid(gated[i]) * upped[i]);
    if (p.gated == nullptr) continue;
    p.gated[index] = gated[i];
    p.upped[index] = upped[i];
  }
}

/// y = inner down^T; one block per 64 positions of an expert and 64 columns of hidden.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) moe_down_kernel(MoeParams<T> p) {
  const TileRows rows = find_tile(p.sort, static_cast<int>(blockIdx.x));
  if (rows.expert < 0) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile;
  const Operand<T> inner = position_rows<T>(p.inner, rows.begin, rows.end, p.width);
  float sums[kTileSums] = {};
  add_tile_product(inner, 0, matrix(p.down[rows.expert], p.hidden, p.width), column,
                   shared_memory<T>(), sums);
  for (int i = 0; i < kTileSums; ++i) {
    const TileElement at = tile_element<T>(i);
    if (rows.begin + at.row >= rows.end || column + at.column >= p.hidden) continue;
    p.y[(rows.begin + at.row) * p.hidden + column + at.column] = sums[i];
  }
}

template <typename T>
struct CombineParams {
  ExpertSort sort;
  const float* rows;     // [entries, hidden] by position
  const float* weights;  // [tokens, k]; null: 1
  T* out;                // [tokens, hidden]; unused with `total`
  float* total;          // [tokens, hidden] to which the sum is added, or null
  int64_t hidden;
};

/// One block per token: the rows of its entries, in ascending position and thus expert.
template <typename T>
__global__ void __launch_bounds__(kThreads) combine_kernel(CombineParams<T> p) {
  int* order = shared_memory<int>();                        // [k] slots by position
  int* count = shared_memory<int>(p.sort.k * sizeof(int));  // slots with an expert
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.sort.k;
  const int k = static_cast<int>(p.sort.k);
  const auto expert_of = [&](int slot) { return p.sort.chosen[first + slot]; };
  const auto is_placed = [&](int slot) {
    return expert_of(slot) >= 0 && expert_of(slot) < p.sort.experts;
  };
  for (int slot = static_cast<int>(threadIdx.x); slot < k; slot += kThreads) {
    int before = 0, placed = 0;
    for (int other = 0; other < k; ++other) {
      const bool precedes = mutant(MoeMutant::slot_order) || expert_of(other) == expert_of(slot)
                                ? other < slot
                                : expert_of(other) < expert_of(slot);
      before += is_placed(other) && precedes ? 1 : 0;
      placed += is_placed(other) ? 1 : 0;
    }
    if (is_placed(slot)) order[before] = slot;
    if (slot == 0) *count = placed;
  }
  __syncthreads();
  for (int64_t column = threadIdx.x; column < p.hidden; column += kThreads) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * p.hidden + column;
    float sum = p.total != nullptr ? p.total[at] : 0;
    for (int i = 0; i < *count; ++i) {
      const int64_t entry = first + order[i];
      const bool weighted = p.weights != nullptr && !mutant(MoeMutant::unweighted);
      const float weight = weighted ? p.weights[entry] : 1.0f;
      sum += weight * p.rows[p.sort.position[entry] * p.hidden + column];
    }
    if (p.total != nullptr) {
      p.total[at] = sum;
    } else {
      p.out[at] = from_float<T>(sum);
    }
  }
}

/// dinner = dout down; one block per 64 positions of an expert and 64 columns of the width.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) moe_dinner_kernel(MoeBackwardParams<T> p) {
  const MoeParams<T>& f = p.forward;
  const TileRows rows = find_tile(f.sort, static_cast<int>(blockIdx.x));
  if (rows.expert < 0) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile;
  const Operand<T> dout = token_rows(f.sort, p.dout, rows.begin, rows.end, f.hidden);
  float sums[kTileSums] = {};
  add_tile_product(dout, 0, transposed(matrix(f.down[rows.expert], f.hidden, f.width)), column,
                   shared_memory<T>(), sums);
  for (int i = 0; i < kTileSums; ++i) {
    const TileElement at = tile_element<T>(i);
    if (rows.begin + at.row >= rows.end || column + at.column >= f.width) continue;
    p.dinner[(rows.begin + at.row) * f.width + column + at.column] = sums[i];
  }
}

/// One block per position.
template <typename T>
__global__ void __launch_bounds__(kThreads) moe_activation_backward_kernel(MoeBackwardParams<T> p) {
  const MoeParams<T>& f = p.forward;
  const int64_t position = blockIdx.x;
  if (position >= f.sort.offsets[f.sort.experts]) return;
  const int64_t entry = f.sort.order[position];
  const float weight = f.weights[entry];
  float dweight = 0;
  for (int64_t i = position * f.width + threadIdx.x; i < (position + 1) * f.width; i += kThreads) {
    const float inner = to_float(f.inner[i]), gated = f.gated[i], score = sigmoid(gated);
    const float slope =
        mutant(MoeMutant::wrong_slope) ? score : score * (1.0f + gated * (1.0f - score));
    const float dinner = weight * p.dinner[i];
    dweight += p.dinner[i] * inner;
    p.weighted[i] = from_float<T>(weight * inner);
    p.dgated[i] = from_float<T>(dinner * f.upped[i] * slope);
    p.dupped[i] = from_float<T>(dinner * gated * score);
  }
  const float total = block_sum(dweight, shared_memory<float>());
  if (threadIdx.x == 0) p.dweights[entry] = total;
}

/// Per position dgated gate + dupped up; one block per 64 positions and 64 columns of hidden.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) moe_dx_kernel(MoeBackwardParams<T> p) {
  const MoeParams<T>& f = p.forward;
  const TileRows rows = find_tile(f.sort, static_cast<int>(blockIdx.x));
  if (rows.expert < 0) return;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile;
  const Operand<T> dgated = position_rows<T>(p.dgated, rows.begin, rows.end, f.width);
  const Operand<T> dupped = position_rows<T>(p.dupped, rows.begin, rows.end, f.width);
  T* tiles = shared_memory<T>();
  float sums[kTileSums] = {};
  add_tile_product(dgated, 0, transposed(matrix(f.gate[rows.expert], f.width, f.hidden)), column,
                   tiles, sums);
  add_tile_product(dupped, 0, transposed(matrix(f.up[rows.expert], f.width, f.hidden)), column,
                   tiles, sums);
  for (int i = 0; i < kTileSums; ++i) {
    const TileElement at = tile_element<T>(i);
    if (rows.begin + at.row >= rows.end || column + at.column >= f.hidden) continue;
    p.dx_entries[(rows.begin + at.row) * f.hidden + column + at.column] = sums[i];
  }
}

enum class WeightGradient { gate, up, down };

/// dgate = dgated^T x, dup = dupped^T x, ddown = dout^T (w inner); the sum runs over an expert's
/// positions in order. One block per expert and tile of the gradient.
template <typename T, WeightGradient kWhich>
__global__ void __launch_bounds__(kTileThreads) moe_dweight_kernel(MoeBackwardParams<T> p) {
  const MoeParams<T>& f = p.forward;
  const int expert = static_cast<int>(blockIdx.z);
  const int begin = f.sort.offsets[expert], end = f.sort.offsets[expert + 1];
  if (mutant(MoeMutant::stale_gradient) && begin == end) return;
  Operand<T> left, right;
  T* gradient;
  if constexpr (kWhich == WeightGradient::down) {
    left = token_rows(f.sort, p.dout, begin, end, f.hidden);
    right = position_rows<T>(p.weighted, begin, end, f.width);
    gradient = p.ddown[expert];
  } else {
    const bool is_gate = kWhich == WeightGradient::gate;
    left = position_rows<T>(is_gate ? p.dgated : p.dupped, begin, end, f.width);
    right = token_rows(f.sort, f.x, begin, end, f.hidden);
    gradient = is_gate ? p.dgate[expert] : p.dup[expert];
  }
  const Operand<T> a = transposed(left), b = transposed(right);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kTile;
  float sums[kTileSums] = {};
  add_tile_product(a, row, b, column, shared_memory<T>(), sums);
  for (int i = 0; i < kTileSums; ++i) {
    const TileElement at = tile_element<T>(i);
    if (row + at.row >= a.rows || column + at.column >= b.rows) continue;
    gradient[(row + at.row) * b.rows + column + at.column] = from_float<T>(sums[i]);
  }
}

unsigned tiles_of(int64_t size) { return static_cast<unsigned>(ceil_div<int64_t>(size, kTile)); }

/// Enough blocks for every split of the entries over the experts, times `columns`.
LaunchShape grouped(const char* name, const ExpertSort& sort, int64_t columns, size_t tile_bytes) {
  const int64_t used = sort.experts < sort.entries() ? sort.experts : sort.entries();
  return {.name = name,
          .grid = dim3(tiles_of(sort.entries()) + static_cast<unsigned>(used), tiles_of(columns)),
          .block = kTileThreads,
          .shared_bytes = 2 * tile_bytes};
}

template <typename T>
void launch_combine(const CombineParams<T>& p, Stream stream) {
  const ExpertSort& sort = p.sort;
  launch(combine_kernel<T>,
         {.name = "moe_combine",
          .grid = static_cast<unsigned>(sort.tokens),
          .block = kThreads,
          .shared_bytes = (static_cast<size_t>(sort.k) + 1) * sizeof(int)},
         stream, p);
}

template <typename T, WeightGradient kWhich>
void launch_dweight(const MoeBackwardParams<T>& p, int64_t rows, int64_t columns, Stream stream) {
  launch(moe_dweight_kernel<T, kWhich>,
         {.name = "moe_dweight",
          .grid = dim3(tiles_of(rows), tiles_of(columns),
                       static_cast<unsigned>(p.forward.sort.experts)),
          .block = kTileThreads,
          .shared_bytes = 2 * kTileBytes<T>},
         stream, p);
}

}  // namespace

template <typename T>
void launch_moe(const MoeParams<T>& p, Stream stream) {
  if (p.sort.entries() == 0) return;
  launch_sort(p.sort, stream);
  launch(moe_inner_kernel<T>, grouped("moe_inner", p.sort, p.width, kTileBytes<T>), stream, p);
  launch(moe_down_kernel<T>, grouped("moe_down", p.sort, p.hidden, kTileBytes<T>), stream, p);
  launch_combine(CombineParams<T>{p.sort, p.y, p.weights, p.out, p.sum, p.hidden}, stream);
}

template <typename T>
void launch_moe_backward(const MoeBackwardParams<T>& p, Stream stream) {
  const MoeParams<T>& f = p.forward;
  const ExpertSort& sort = f.sort;
  launch_sort(sort, stream);
  if (sort.entries() > 0) {
    launch(moe_inner_kernel<T>, grouped("moe_inner", sort, f.width, kTileBytes<T>), stream, f);
    launch(moe_dinner_kernel<T>, grouped("moe_dinner", sort, f.width, kTileBytes<T>), stream, p);
    launch(moe_activation_backward_kernel<T>,
           {.name = "moe_activation_backward",
            .grid = static_cast<unsigned>(sort.entries()),
            .block = kThreads,
            .shared_bytes = kWarpSize * sizeof(float)},
           stream, p);
    launch(moe_dx_kernel<T>, grouped("moe_dx", sort, f.hidden, kTileBytes<T>), stream, p);
    launch_combine(CombineParams<T>{sort, p.dx_entries, nullptr, p.dx, p.dx_sum, f.hidden}, stream);
  }
  launch_dweight<T, WeightGradient::gate>(p, f.width, f.hidden, stream);
  launch_dweight<T, WeightGradient::up>(p, f.width, f.hidden, stream);
  launch_dweight<T, WeightGradient::down>(p, f.hidden, f.width, stream);
}

template void launch_moe(const MoeParams<float>&, Stream);
template void launch_moe(const MoeParams<bf16>&, Stream);
template void launch_moe_backward(const MoeBackwardParams<float>&, Stream);
template void launch_moe_backward(const MoeBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
