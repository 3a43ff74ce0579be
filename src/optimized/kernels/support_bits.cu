#include "src/optimized/kernels/support_bits.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr int kThreads = 128;
constexpr int kWordBits = 32;

/// One block per row.
__global__ void __launch_bounds__(kThreads) support_bits_kernel(SupportBitsParams p) {
  unsigned* words = shared_memory<unsigned>();  // [count]
  const int64_t count = ceil_div<int64_t>(p.keys, kWordBits);
  if (!mutant(SupportBitsMutant::stale_words)) {
    for (int64_t i = threadIdx.x; i < count; i += kThreads) words[i] = 0;
  }
  __syncthreads();
  const int32_t* list = p.topk + blockIdx.x * p.slots;
  const int64_t slots = mutant(SupportBitsMutant::wrong_tail) ? p.slots - 1 : p.slots;
  for (int64_t i = threadIdx.x; i < slots; i += kThreads) {
    const int key = list[i];
    if (key < 0 || key >= p.keys) continue;
    atomicOr(words + key / kWordBits, 1u << key % kWordBits);
  }
  if (!mutant(SupportBitsMutant::missing_barrier)) __syncthreads();
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    p.words[blockIdx.x * count + i] = static_cast<int32_t>(words[i]);
  }
}

/// One warp per word, one lane per key.
__global__ void __launch_bounds__(kThreads) visible_bits_kernel(VisibleBitsParams p) {
  const int64_t count = ceil_div<int64_t>(p.keys, kWordBits);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t word = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarpSize) + warp;
  if (word >= p.batch * p.queries * count) return;
  const int64_t row = word / count, b = row / p.queries;
  const int64_t key = word % count * kWordBits + lane;
  const int64_t edge = p.first_query + row % p.queries;
  const bool is_causal = mutant(SupportBitsMutant::off_by_one) ? key < edge : key <= edge;
  const bool exists = key < p.keys || mutant(SupportBitsMutant::past_the_end);
  const bool sees = exists && is_causal && p.mask[b * p.keys + key];
  const unsigned bits = __ballot_sync(kFullWarp, sees);
  if (lane == 0) p.words[word] = static_cast<int32_t>(bits);
}

}  // namespace

void launch_support_bits(const SupportBitsParams& p, Stream stream) {
  const int64_t count = ceil_div<int64_t>(p.keys, kWordBits);
  if (p.rows * count == 0) return;
  launch(support_bits_kernel,
         {.name = "support_bits",
          .grid = static_cast<unsigned>(p.rows),
          .block = kThreads,
          .shared_bytes = static_cast<size_t>(count) * sizeof(unsigned)},
         stream, p);
}

void launch_visible_bits(const VisibleBitsParams& p, Stream stream) {
  const int64_t words = p.batch * p.queries * ceil_div<int64_t>(p.keys, kWordBits);
  if (words == 0) return;
  launch(visible_bits_kernel,
         {.name = "visible_bits",
          .grid = static_cast<unsigned>(ceil_div<int64_t>(words, kThreads / kWarpSize)),
          .block = kThreads},
         stream, p);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
