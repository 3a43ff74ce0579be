// The SIMT executor: CUDA's meaning on the CPU, and what CUDA leaves undefined is found.

#include "src/optimized/simt/simt.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr int kSchedules = 20;
constexpr unsigned kBlock = 96;

/// The text of the Fault that `run` ends in under the given schedule, or "" when it ends well.
template <typename Run>
std::string fault_of(uint64_t seed, Run run) {
  simt::set_schedule_seed(seed);
  try {
    run();
  } catch (const simt::Fault& fault) {
    return fault.what();
  }
  return "";
}

void expect_fault(const std::string& fault, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(fault.find(part), std::string::npos) << "no '" << part << "' in: " << fault;
  }
}

// --- what works ---------------------------------------------------------------------------------

struct SumParams {
  const int* x;  // [grid, kBlock]
  int* sums;     // [grid]
  bool forgets_barrier = false;
};

/// Warp sums by shuffles, then thread 0 adds what the warps left in shared memory.
__global__ void sum_kernel(SumParams p) {
  int* partial = shared_memory<int>();
  int value = p.x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(kFullWarp, value, bits);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  if (!p.forgets_barrier) __syncthreads();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (unsigned i = 0; i < kBlock / 32; ++i) sum += partial[i];
    p.sums[blockIdx.x] = sum;
  }
}

std::vector<int> sums(unsigned grid, bool forgets_barrier) {
  std::vector<int> x(grid * kBlock), result(grid);
  std::iota(x.begin(), x.end(), 1);
  launch(sum_kernel,
         {.name = "sum", .grid = grid, .block = kBlock, .shared_bytes = sizeof(int) * kBlock / 32},
         nullptr, {x.data(), result.data(), forgets_barrier});
  return result;
}

std::vector<int> wanted_sums(int grid) {
  std::vector<int> result;
  const int n = kBlock;
  for (int block = 0; block < grid; ++block) {
    result.push_back(block * n * n + n * (n + 1) / 2);
  }
  return result;
}

TEST(Simt, ReducesAcrossWarpsUnderEverySchedule) {
  for (int seed = 0; seed < kSchedules; ++seed) {
    simt::set_schedule_seed(seed);
    EXPECT_EQ(sums(7, /*forgets_barrier=*/false), wanted_sums(7));
  }
}

TEST(Simt, FindsAForgottenBarrier) {
  int found = 0;
  for (int seed = 0; seed < kSchedules; ++seed) {
    simt::set_schedule_seed(seed);
    found += sums(7, /*forgets_barrier=*/true) != wanted_sums(7);
  }
  EXPECT_EQ(found, kSchedules);
}

struct OrderParams {
  int* next;
  int* order;  // [grid, kBlock]
};

__global__ void order_kernel(OrderParams p) {
  p.order[atomicAdd(p.next, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

std::vector<int> order_of(uint64_t seed) {
  simt::set_schedule_seed(seed);
  int next = 0;
  std::vector<int> order(3 * kBlock);
  launch(order_kernel, {.name = "order", .grid = 3, .block = kBlock}, nullptr,
         {&next, order.data()});
  return order;
}

TEST(Simt, ASeedFixesTheOrderAndAnotherChangesIt) {
  EXPECT_EQ(order_of(1), order_of(1));
  EXPECT_NE(order_of(1), order_of(2));
  std::vector<int> sorted = order_of(1), all(3 * kBlock);
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(sorted, all);
}

struct IndexParams {
  int* seen;  // one per thread of the grid, all axes
};

__global__ void index_kernel(IndexParams p) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++p.seen[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

TEST(Simt, VisitsEveryThreadOfAGridOfThreeAxes) {
  std::vector<int> seen(2 * 3 * 4 * 5 * 3 * 2);
  launch(index_kernel, {.name = "index", .grid = {2, 3, 4}, .block = {5, 3, 2}}, nullptr,
         {seen.data()});
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

struct WarpParams {
  int* out;  // [operations, 32]
};

__global__ void warp_kernel(WarpParams p) {
  const int lane = static_cast<int>(threadIdx.x);
  int* out = p.out + lane;
  *out = __shfl_sync(kFullWarp, lane * lane, lane + 3, 8), out += 32;
  *out = __shfl_up_sync(kFullWarp, lane, 2, 16), out += 32;
  *out = __shfl_down_sync(kFullWarp, lane, 5), out += 32;
  *out = static_cast<int>(__ballot_sync(kFullWarp, lane % 3 == 0)), out += 32;
  *out = __any_sync(kFullWarp, lane == 31) + 2 * __all_sync(kFullWarp, lane < 31), out += 32;
  *out = static_cast<int>(__match_any_sync(kFullWarp, lane / 8)), out += 32;
  *out = static_cast<int>(__reduce_add_sync(kFullWarp, 7u)), out += 32;
  // Half a warp may do more than the other half.
  int low = 0;
  if (lane < 16) low = __shfl_sync(0xffffu, lane, 15);
  *out = __shfl_sync(kFullWarp, low, lane / 2);
}

TEST(Simt, WarpOperationsMeanWhatCudaSays) {
  for (int seed = 0; seed < kSchedules; ++seed) {
    simt::set_schedule_seed(seed);
    std::vector<int> out(8 * 32);
    launch(warp_kernel, {.name = "warp", .grid = 1, .block = 32}, nullptr, {out.data()});
    for (int lane = 0; lane < 32; ++lane) {
      const int source = lane / 8 * 8 + (lane + 3) % 8;
      EXPECT_EQ(out[lane], source * source);
      EXPECT_EQ(out[32 + lane], lane % 16 >= 2 ? lane - 2 : lane);
      EXPECT_EQ(out[64 + lane], lane + 5 < 32 ? lane + 5 : lane);
      EXPECT_EQ(static_cast<unsigned>(out[96 + lane]), 0x49249249u);
      EXPECT_EQ(out[128 + lane], 1);
      EXPECT_EQ(static_cast<unsigned>(out[160 + lane]), 0xffu << (lane / 8 * 8));
      EXPECT_EQ(out[192 + lane], 7 * 32);
      EXPECT_EQ(out[224 + lane], 15);
    }
  }
}

struct AtomicParams {
  float* sum;
  int* largest;
  int* smallest;
  unsigned* count;  // by compare-and-swap
};

__global__ void atomic_kernel(AtomicParams p) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(p.sum, 0.5f);
  atomicMax(p.largest, i);
  atomicMin(p.smallest, i);
  unsigned seen = *p.count;
  for (unsigned before = seen + 1; before != seen;) {
    before = seen;
    seen = atomicCAS(p.count, before, before + 1);
  }
}

TEST(Simt, AtomicsLoseNothing) {
  float sum = 0;
  int largest = -1, smallest = 1000;
  unsigned count = 0;
  launch(atomic_kernel, {.name = "atomic", .grid = 5, .block = 64}, nullptr,
         {&sum, &largest, &smallest, &count});
  EXPECT_EQ(sum, 160.0f);
  EXPECT_EQ(largest, 319);
  EXPECT_EQ(smallest, 0);
  EXPECT_EQ(count, 320u);
}

__global__ void early_exit_kernel(WarpParams p) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  p.out[threadIdx.x] = 1;
}

TEST(Simt, ABarrierWaitsForThreadsThatHaveNotEnded) {
  std::vector<int> out(40);
  launch(early_exit_kernel, {.name = "exit", .grid = 1, .block = 64}, nullptr, {out.data()});
  EXPECT_EQ(out, std::vector<int>(40, 1));
}

// --- tensor cores and copies --------------------------------------------------------------------

struct MmaParams {
  const bf16* a;   // [16,16]
  const bf16* b;   // [16,8]
  const float* c;  // [16,8]
  float* d;        // [16,8]
};

uint32_t pair(bf16 low, bf16 high) { return low.bits | static_cast<uint32_t>(high.bits) << 16; }

__global__ void mma_kernel(MmaParams p) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, slot = lane % 4 * 2;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    const bf16* from = p.a + (group + 8 * (i % 2)) * 16 + slot + 8 * (i / 2);
    a[i] = pair(from[0], from[1]);
  }
  for (int i = 0; i < 2; ++i) {
    const bf16* from = p.b + (slot + 8 * i) * 8 + group;
    b[i] = pair(from[0], from[8]);
  }
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = p.c[(group + 8 * (i / 2)) * 8 + slot + i % 2];
  mma_m16n8k16_bf16(d, a, b, d);
  for (int i = 0; i < 4; ++i) p.d[(group + 8 * (i / 2)) * 8 + slot + i % 2] = d[i];
}

TEST(Simt, MmaIsAMatrixProduct) {
  std::mt19937 random(1);
  std::vector<bf16> a(16 * 16), b(16 * 8);
  std::vector<float> c(16 * 8), d(16 * 8), want(16 * 8);
  const auto small = [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); };
  for (bf16& value : a) value = to_bf16(small());
  for (bf16& value : b) value = to_bf16(small());
  for (float& value : c) value = small();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      float sum = c[row * 8 + column];
      for (int k = 0; k < 16; ++k) sum += to_float(a[row * 16 + k]) * to_float(b[k * 8 + column]);
      want[row * 8 + column] = sum;
    }
  }
  launch(mma_kernel, {.name = "mma", .grid = 1, .block = 32}, nullptr,
         {a.data(), b.data(), c.data(), d.data()});
  EXPECT_EQ(d, want);
}

struct Tf32Params {
  const float* a;  // [16,8]
  const float* b;  // [8,8]
  float* d;        // [16,8]
};

__global__ void tf32_kernel(Tf32Params p) {
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, slot = lane % 4;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) {
    a[i] = __float_as_uint(p.a[(group + 8 * (i % 2)) * 8 + slot + 4 * (i / 2)]);
  }
  for (int i = 0; i < 2; ++i) b[i] = __float_as_uint(p.b[(slot + 4 * i) * 8 + group]);
  float d[4] = {};
  mma_m16n8k8_tf32(d, a, b, d);
  for (int i = 0; i < 4; ++i) p.d[(group + 8 * (i / 2)) * 8 + slot * 2 + i % 2] = d[i];
}

TEST(Simt, Tf32MmaReadsTheUpper19Bits) {
  const float below = 1.0f + 0x1p-20f;  // lost in tf32
  std::vector<float> a(16 * 8), b(8 * 8), d(16 * 8), want(16 * 8);
  for (int i = 0; i < 16 * 8; ++i) a[i] = static_cast<float>(i % 11) * below;
  for (int i = 0; i < 8 * 8; ++i) b[i] = static_cast<float>(i % 7 - 3);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int k = 0; k < 8; ++k) {
        want[row * 8 + column] += static_cast<float>((row * 8 + k) % 11) * b[k * 8 + column];
      }
    }
  }
  launch(tf32_kernel, {.name = "tf32", .grid = 1, .block = 32}, nullptr,
         {a.data(), b.data(), d.data()});
  EXPECT_EQ(d, want);
}

struct LoadParams {
  uint32_t* plain;       // [32,4]
  uint32_t* transposed;  // [32,4]
};

__global__ void ldmatrix_kernel(LoadParams p) {
  auto* tile = shared_memory<uint16_t>();  // [32,8]: four matrices, one below the other
  for (int i = 0; i < 8; ++i)
    tile[threadIdx.x * 8 + i] = static_cast<uint16_t>(threadIdx.x * 8 + i);
  __syncthreads();
  uint32_t d[4];
  ldmatrix_x4(d, tile + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i) p.plain[threadIdx.x * 4 + i] = d[i];
  ldmatrix_x4_trans(d, tile + threadIdx.x * 8);
  for (int i = 0; i < 4; ++i) p.transposed[threadIdx.x * 4 + i] = d[i];
}

TEST(Simt, LdmatrixGivesEachLaneItsPair) {
  std::vector<uint32_t> plain(128), transposed(128);
  launch(ldmatrix_kernel, {.name = "ldmatrix", .grid = 1, .block = 32, .shared_bytes = 512},
         nullptr, {plain.data(), transposed.data()});
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      const uint32_t start = matrix * 64, row = lane / 4, column = lane % 4 * 2;
      const uint32_t along = start + row * 8 + column;
      EXPECT_EQ(plain[lane * 4 + matrix], along | (along + 1) << 16);
      const uint32_t across = start + column * 8 + row;
      EXPECT_EQ(transposed[lane * 4 + matrix], across | (across + 8) << 16);
    }
  }
}

struct CopyParams {
  const float* x;  // [64]
  float* y;        // [64]
  bool waits;
};

/// The upper half of the threads copies nothing and gets zeros.
__global__ void copy_kernel(CopyParams p) {
  float* tile = shared_memory<float>();
  cp_async<4>(tile + threadIdx.x, p.x + threadIdx.x, threadIdx.x < 32);
  cp_async_commit();
  if (p.waits) cp_async_wait<0>();
  __syncthreads();
  p.y[threadIdx.x] = tile[63 - threadIdx.x];
}

std::vector<float> copied(bool waits) {
  std::vector<float> x(64), y(64);
  std::iota(x.begin(), x.end(), 1.0f);
  launch(copy_kernel, {.name = "copy", .grid = 1, .block = 64, .shared_bytes = 256}, nullptr,
         {x.data(), y.data(), waits});
  return y;
}

TEST(Simt, AnAsyncCopyIsThereAfterTheWait) {
  std::vector<float> want(64);
  for (int i = 0; i < 32; ++i) want[63 - i] = static_cast<float>(i + 1);
  EXPECT_EQ(copied(/*waits=*/true), want);
}

TEST(Simt, AnAsyncCopyIsGarbageBeforeTheWait) {
  for (const float value : copied(/*waits=*/false)) EXPECT_TRUE(std::isnan(value));
}

__global__ void groups_kernel(CopyParams p) {
  float* tile = shared_memory<float>();
  for (int i = 0; i < 3; ++i) {
    cp_async<4>(tile + i, p.x + i);
    cp_async_commit();
  }
  cp_async_wait<1>();
  for (int i = 0; i < 3; ++i) p.y[i] = tile[i];
}

TEST(Simt, AWaitLeavesTheLastGroupsPending) {
  const float x[3] = {1, 2, 3};
  float y[3] = {};
  launch(groups_kernel, {.name = "groups", .grid = 1, .block = 1, .shared_bytes = 12}, nullptr,
         {x, y, true});
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 2);
  EXPECT_TRUE(std::isnan(y[2]));
}

TEST(Simt, Bf16RoundsToNearestEven) {
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f).bits, 0x3f80);      // a tie: down to even
  EXPECT_EQ(to_bf16(1.0f + 3 * 0x1p-8f).bits, 0x3f82);  // a tie: up to even
  EXPECT_EQ(to_bf16(1.0f + 0x1p-8f + 0x1p-20f).bits, 0x3f81);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

// --- what is found ------------------------------------------------------------------------------

__global__ void stale_kernel(CopyParams p) {
  float* tile = shared_memory<float>();
  if (blockIdx.x == 0) tile[threadIdx.x] = 1;
  p.y[blockIdx.x * blockDim.x + threadIdx.x] = tile[threadIdx.x];
}

TEST(Simt, SharedMemoryOfTheBlockBeforeIsGone) {
  std::vector<float> y(64);
  launch(stale_kernel, {.name = "stale", .grid = 2, .block = 32, .shared_bytes = 128}, nullptr,
         {nullptr, y.data(), true});
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(y[i], 1);
    EXPECT_TRUE(std::isnan(y[32 + i]));
  }
}

__global__ void overflow_kernel(CopyParams p) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x + 1] = 1;
  p.y[threadIdx.x] = tile[threadIdx.x + 1];
}

void overflow() {
  std::vector<float> y(32);
  launch(overflow_kernel, {.name = "overflow", .grid = 1, .block = 32, .shared_bytes = 128},
         nullptr, {nullptr, y.data(), true});
}

TEST(SimtDeathTest, SharedMemoryOutOfRangeIsFound) {
#if defined(__SANITIZE_ADDRESS__)
  EXPECT_DEATH(overflow(), "use-after-poison");
#else
  expect_fault(fault_of(0, overflow), {"overflow: block (0,0,0)", "outside the block's 128 bytes"});
#endif
}

__global__ void too_much_kernel(CopyParams) { *shared_memory<float>(128) = 1; }

TEST(Simt, SharedMemoryBeyondTheLaunchIsRefused) {
  const auto run = [] {
    launch(too_much_kernel, {.name = "big", .grid = 1, .block = 1, .shared_bytes = 128}, nullptr,
           {});
  };
  expect_fault(fault_of(0, run), {"big: block (0,0,0) thread (0,0,0)", "[128, 132)", "128 bytes"});
}

__global__ void divergent_kernel(CopyParams p) {
  if (threadIdx.x < 32) {
    __syncthreads();
    p.y[0] = 1;
  } else {
    __syncthreads();
  }
}

TEST(Simt, ADivergentBarrierIsNamed) {
  for (int seed = 0; seed < kSchedules; ++seed) {
    float y = 0;
    const auto run = [&] {
      launch(divergent_kernel, {.name = "divergent", .grid = 3, .block = 64}, nullptr,
             {nullptr, &y, true});
    };
    expect_fault(fault_of(seed, run), {"divergent: block (", ") thread (", "divergent barrier",
                                       "__syncthreads at", "simt.cpp:"});
  }
}

__global__ void half_barrier_kernel(CopyParams) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __shfl_sync(kFullWarp, 1, threadIdx.x < 48 ? 0 : 1);
    if (threadIdx.x < 48) __syncwarp();
  }
}

TEST(Simt, WaitingForEverIsNamed) {
  for (int seed = 0; seed < kSchedules; ++seed) {
    const auto run = [] {
      launch(half_barrier_kernel, {.name = "half", .grid = 1, .block = 64}, nullptr, {});
    };
    expect_fault(fault_of(seed, run),
                 {"half: block (0,0,0) thread (32,0,0)", "waits for ever in __syncwarp at",
                  "mask 0xffffffff, lanes missing: 0xffff0000",
                  "32 of 48 live threads reached __syncthreads at"});
  }
}

__global__ void foreign_lane_kernel(CopyParams) { __shfl_sync(0xffu, 1, 0); }
__global__ void dead_source_kernel(CopyParams) {
  if (threadIdx.x < 8) __shfl_sync(0xffu, 1, 8);
}

TEST(Simt, LanesOutsideTheMaskAreFound) {
  const auto foreign = [] {
    launch(foreign_lane_kernel, {.name = "foreign", .grid = 1, .block = 32}, nullptr, {});
  };
  expect_fault(fault_of(0, foreign), {"foreign: block", "is not in its own mask"});
  const auto dead = [] {
    launch(dead_source_kernel, {.name = "dead", .grid = 1, .block = 32}, nullptr, {});
  };
  expect_fault(fault_of(0, dead), {"dead: block", "reads from a lane that is not in the mask"});
}

__global__ void throwing_kernel(CopyParams p) {
  if (threadIdx.x == 5) throw std::logic_error("from a thread");
  __syncthreads();
  p.y[0] = 1;
}

TEST(Simt, AnExceptionOfAThreadReachesTheCaller) {
  float y = 0;
  const auto run = [&] {
    launch(throwing_kernel, {.name = "throwing", .grid = 2, .block = 64}, nullptr,
           {nullptr, &y, true});
  };
  EXPECT_THROW(run(), std::logic_error);
  EXPECT_EQ(sums(2, false), wanted_sums(2)) << "the executor is sound afterwards";
}

TEST(Simt, ALaunchThatAGpuRefusesIsRefused) {
  const auto run = [](dim3 grid, dim3 block, size_t shared) {
    return fault_of(0, [=] {
      launch(foreign_lane_kernel,
             {.name = "shape", .grid = grid, .block = block, .shared_bytes = shared}, nullptr, {});
    });
  };
  expect_fault(run({0}, {32}, 0), {"shape: launch: grid (0,1,1)"});
  expect_fault(run({1, 65536}, {32}, 0), {"shape: launch: grid (1,65536,1)"});
  expect_fault(run({1}, {0}, 0), {"shape: launch: block (0,1,1)"});
  expect_fault(run({1}, {1025}, 0), {"shape: launch: block (1025,1,1)"});
  expect_fault(run({1}, {32}, 232449), {"shape: launch: 232449 bytes of shared memory"});
}

}  // namespace
}  // namespace dsv32::optimized::DSV32_BACKEND
