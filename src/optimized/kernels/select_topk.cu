#include "src/optimized/kernels/select_topk.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kMaxThreads = 512;
constexpr unsigned kMaxWarps = kMaxThreads / kWarpSize;
// The key is looked at in three digits, the highest first.
constexpr int kDigits = 3;
constexpr int kDigitBits = 11;
constexpr unsigned kBins = 1u << kDigitBits;
constexpr uint64_t kNothing = ~uint64_t{0};

struct SharedCounts {
  unsigned bins[kBins];
  unsigned per_warp[2 * kMaxWarps];
  unsigned prefix;     // digits of the threshold found so far
  unsigned remaining;  // how many keys with that prefix are still to be taken
};

__device__ inline unsigned row_key(const SelectTopkParams& p, int64_t row, int64_t i) {
  return topk_key(p.scores[row * p.keys + i], !mutant(SelectTopkMutant::signed_zero));
}

/// Lowest bit of a digit; the last digit has only 10 bits of its own.
__device__ inline int digit_shift(int digit) {
  return digit == kDigits - 1 ? 0 : 32 - kDigitBits * (digit + 1);
}

/// The part of a key above `digit`, 0 for the first digit.
__device__ inline unsigned above_digit(unsigned key, int digit) {
  return digit == 0 ? 0 : key >> (32 - kDigitBits * digit);
}

/// Thread 0's warp walks the bins from the top and finds the one in which the `remaining`-th key
/// is. False when there are not so many keys: then all are taken.
__device__ inline bool find_bin(SharedCounts& shared, int digit) {
  const unsigned lane = threadIdx.x % kWarpSize;
  const unsigned wanted = shared.remaining;
  __syncwarp();
  unsigned above = 0;
  for (unsigned group = kBins / kWarpSize; group-- > 0;) {
    const unsigned bin = group * kWarpSize + (kWarpSize - 1 - lane);  // lane 0: the highest bin
    const unsigned count = shared.bins[bin];
    unsigned sum = count;
    for (unsigned delta = 1; delta < kWarpSize; delta *= 2) {
      const unsigned below = __shfl_up_sync(kFullWarp, sum, delta);
      if (lane >= delta) sum += below;
    }
    const unsigned reached = __ballot_sync(kFullWarp, above + sum >= wanted);
    if (reached != 0) {
      if (lane == static_cast<unsigned>(__ffs(static_cast<int>(reached)) - 1)) {
        const int bits = digit == kDigits - 1 ? 32 - kDigitBits * digit : kDigitBits;
        shared.prefix = (shared.prefix << bits) | bin;
        shared.remaining = wanted - (above + sum - count);
      }
      return true;
    }
    above += __shfl_sync(kFullWarp, sum, kWarpSize - 1);
  }
  return false;
}

/// Leaves the key of the k-th score in shared.prefix and in shared.remaining how many scores with
/// that key are taken. prefix 0: fewer than k scores can be selected, all are taken.
__device__ inline void find_threshold(const SelectTopkParams& p, int64_t row, int64_t end,
                                      SharedCounts& shared) {
  const int digits = mutant(SelectTopkMutant::dropped_pass) ? kDigits - 1 : kDigits;
  if (threadIdx.x == 0) {
    shared.prefix = 0;
    shared.remaining = static_cast<unsigned>(p.k);
  }
  for (int digit = 0; digit < digits; ++digit) {
    if (digit == 0 || !mutant(SelectTopkMutant::stale_histogram)) {
      for (unsigned i = threadIdx.x; i < kBins; i += blockDim.x) shared.bins[i] = 0;
    }
    __syncthreads();
    const unsigned prefix = shared.prefix;
    const unsigned mask = (digit == kDigits - 1 ? kBins / 2 : kBins) - 1;
    for (int64_t i = threadIdx.x; i < end; i += blockDim.x) {
      const unsigned key = row_key(p, row, i);
      if (key == 0 || above_digit(key, digit) != prefix) continue;
      atomicAdd(&shared.bins[(key >> digit_shift(digit)) & mask], 1u);
    }
    __syncthreads();
    if (threadIdx.x < kWarpSize) find_bin(shared, digit);
    __syncthreads();
    if (shared.prefix == 0) return;
  }
  if (mutant(SelectTopkMutant::dropped_pass) && threadIdx.x == 0) shared.prefix <<= 10;
  __syncthreads();
}

/// Puts one selected score in its place: index order, or into the row that is sorted later.
__device__ inline void emit(const SelectTopkParams& p, int64_t row, int64_t position, int64_t i,
                            unsigned key) {
  if (!p.by_score) {
    p.topk[row * p.k + position] = static_cast<int32_t>(i);
  } else {
    const unsigned low = mutant(SelectTopkMutant::unstable_order) ? ~static_cast<unsigned>(i)
                                                                  : static_cast<unsigned>(i);
    p.workspace[row * topk_sort_width(p.k) + position] = uint64_t{~key} << 32 | low;
  }
}

/// Bitonic sort of the row's words, ascending: descending score, then ascending index.
__device__ inline void sort_words(uint64_t* words, int64_t width) {
  for (int64_t run = 2; run <= width; run *= 2) {
    for (int64_t gap = run / 2; gap > 0; gap /= 2) {
      for (int64_t i = threadIdx.x; i < width / 2; i += blockDim.x) {
        const int64_t low = i / gap * 2 * gap + i % gap, high = low + gap;
        const bool ascending = (low & run) == 0;
        const uint64_t a = words[low], b = words[high];
        if ((a > b) == ascending) {
          words[low] = b;
          words[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

/// One block per row. Every warp owns a contiguous part of the row, so that a count per warp gives
/// every selected score its place.
__global__ void __launch_bounds__(kMaxThreads) select_topk_kernel(SelectTopkParams p) {
  SharedCounts& shared = *shared_memory<SharedCounts>();
  const int64_t row = blockIdx.x;
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const unsigned warps = blockDim.x / kWarpSize;
  const int64_t end = mutant(SelectTopkMutant::wrong_tail) ? p.keys - 1 : p.keys;
  find_threshold(p, row, end, shared);
  const unsigned threshold = shared.prefix;
  const unsigned equals_taken = threshold == 0 ? 0 : shared.remaining;

  const int64_t part = ceil_div<int64_t>(end, warps * kWarpSize) * kWarpSize;
  const int64_t first = warp * part, last = min(first + part, end);
  unsigned greater = 0, equal = 0;  // in this warp's part
  for (int64_t base = first; base < last; base += kWarpSize) {
    const unsigned key = base + lane < last ? row_key(p, row, base + lane) : 0;
    greater += __popc(__ballot_sync(kFullWarp, key > threshold));
    equal += __popc(__ballot_sync(kFullWarp, key != 0 && key == threshold));
  }
  if (lane == 0) {
    shared.per_warp[2 * warp] = greater;
    shared.per_warp[2 * warp + 1] = equal;
  }
  if (!mutant(SelectTopkMutant::missing_barrier)) __syncthreads();

  unsigned greater_before = 0, equal_before = 0, all_greater = 0, all_equal = 0;
  for (unsigned w = 0; w < warps; ++w) {
    if (w == warp) {
      greater_before = all_greater;
      equal_before = all_equal;
    }
    all_greater += shared.per_warp[2 * w];
    all_equal += shared.per_warp[2 * w + 1];
  }
  const unsigned skipped =  // of the equal ones, from the front
      mutant(SelectTopkMutant::higher_index) ? all_equal - equals_taken : 0;
  const unsigned lanes_before = (1u << lane) - 1;
  for (int64_t base = first; base < last; base += kWarpSize) {
    const unsigned key = base + lane < last ? row_key(p, row, base + lane) : 0;
    const unsigned greater_lanes = __ballot_sync(kFullWarp, key > threshold);
    const unsigned equal_lanes = __ballot_sync(kFullWarp, key != 0 && key == threshold);
    const unsigned rank = equal_before + __popc(equal_lanes & lanes_before);  // among the equal
    const unsigned taken_before = greater_before + __popc(greater_lanes & lanes_before) +
                                  (rank < skipped ? 0 : min(rank - skipped, equals_taken));
    const bool is_equal = (equal_lanes >> lane & 1u) != 0;
    const bool is_taken_equal = is_equal && rank >= skipped && rank - skipped < equals_taken;
    // Scores that change under the kernel must not make it write past the row.
    const bool takes = (key > threshold || is_taken_equal) && taken_before < p.k;
    if (takes) emit(p, row, taken_before, base + lane, key);
    greater_before += __popc(greater_lanes);
    equal_before += __popc(equal_lanes);
  }

  const int64_t count = min(int64_t{all_greater} + min(all_equal, equals_taken), p.k);
  if (!p.by_score) {
    for (int64_t i = count + threadIdx.x; i < p.k; i += blockDim.x) p.topk[row * p.k + i] = -1;
    return;
  }
  const int64_t width = topk_sort_width(p.k);
  uint64_t* words = p.workspace + row * width;
  for (int64_t i = count + threadIdx.x; i < width; i += blockDim.x) words[i] = kNothing;
  __syncthreads();
  sort_words(words, width);
  for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
    const unsigned index = static_cast<unsigned>(words[i]);
    const bool inverted = mutant(SelectTopkMutant::unstable_order) && words[i] != kNothing;
    p.topk[row * p.k + i] = static_cast<int32_t>(inverted ? ~index : index);
  }
}

/// Whole warps, a score or more per thread.
unsigned block_size(int64_t keys) {
  const int64_t threads = ceil_div<int64_t>(keys, kWarpSize) * kWarpSize;
  return static_cast<unsigned>(max(int64_t{kWarpSize}, min(threads, int64_t{kMaxThreads})));
}

}  // namespace

void launch_select_topk(const SelectTopkParams& params, Stream stream) {
  if (params.rows == 0) return;
  launch(select_topk_kernel,
         {.name = "select_topk",
          .grid = static_cast<unsigned>(params.rows),
          .block = block_size(params.keys),
          .shared_bytes = sizeof(SharedCounts)},
         stream, params);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
