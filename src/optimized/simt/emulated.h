#pragma once

/// The executor's side of simt.h: CUDA's names as plain C++ on top of executor.h.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"
#include "src/optimized/simt/executor.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::dsv32::optimized::simt::built_ins.thread)
#define blockIdx (::dsv32::optimized::simt::built_ins.block)
#define blockDim (::dsv32::optimized::simt::built_ins.block_shape)
#define gridDim (::dsv32::optimized::simt::built_ins.grid_shape)
// The place of a call, as default arguments of the function called.
#define DSV32_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace dsv32::optimized::simt {

/// What one lane brings to a shuffle and takes from it.
template <typename T>
struct Shuffle {
  T value;
  int source;
  bool missing = false;
};

template <typename T>
void complete_shuffle(void* const* payloads, unsigned mask) {
  T result[32];
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    auto& own = *static_cast<Shuffle<T>*>(payloads[lane]);
    own.missing = (mask >> own.source & 1u) == 0;
    if (!own.missing) result[lane] = static_cast<Shuffle<T>*>(payloads[own.source])->value;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    auto& own = *static_cast<Shuffle<T>*>(payloads[lane]);
    if (!own.missing) own.value = result[lane];
  }
}

template <typename T>
T shuffle(unsigned mask, T value, int source, const Site& site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4, "what CUDA shuffles");
  Shuffle<T> own{value, source};
  warp_operation(mask, &own, complete_shuffle<T>, site);
  if (own.missing) fail(site, "reads from a lane that is not in the mask");
  return own.value;
}

inline int lane_index() {
  const dim3& shape = built_ins.block_shape;
  const uint3& i = built_ins.thread;
  return static_cast<int>((i.x + shape.x * (i.y + shape.y * i.z)) % 32);
}

/// First lane of the segment of `width` lanes that this lane is in.
inline int segment_start(int width, const Site& site) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail(site, "width is no power of two");
  return lane_index() / width * width;
}

struct Vote {
  unsigned value;
  unsigned result;
};

/// Gives every lane of the mask fold(lane, value of lane) over all lanes, from `start`.
template <typename Fold>
void fold_votes(void* const* payloads, unsigned mask, unsigned start, Fold fold) {
  unsigned result = start;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    result = fold(result, lane, static_cast<Vote*>(payloads[lane])->value);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) != 0) static_cast<Vote*>(payloads[lane])->result = result;
  }
}

inline unsigned vote(unsigned mask, unsigned value, CompleteWarpOperation complete,
                     const Site& site) {
  Vote own{value, 0};
  warp_operation(mask, &own, complete, site);
  return own.result;
}

inline unsigned ballot(unsigned mask, bool predicate, const Site& site) {
  const auto complete = [](void* const* payloads, unsigned lanes) {
    fold_votes(payloads, lanes, 0, [](unsigned bits, int lane, unsigned value) {
      return bits | (value == 0 ? 0u : 1u << lane);
    });
  };
  return vote(mask, predicate, complete, site);
}

struct Match {
  unsigned long long value;
  unsigned result;
};

inline void complete_match(void* const* payloads, unsigned mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    auto& own = *static_cast<Match*>(payloads[lane]);
    own.result = 0;
    for (int other = 0; other < 32; ++other) {
      if ((mask >> other & 1u) == 0) continue;
      if (static_cast<Match*>(payloads[other])->value == own.value) own.result |= 1u << other;
    }
  }
}

template <typename T, typename Change>
T atomic(T* address, Change change) {
  const T before = *address;
  *address = change(before);
  return before;
}

/// Operands and result of one lane in a matrix product. Which element of a matrix a register holds
/// is written in the PTX manual, "Matrix Fragments for mma".
struct MatrixProduct {
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
  float* d;
};

inline float bf16_half(uint32_t pair, int half) {
  return to_float(bf16{static_cast<uint16_t>(pair >> (16 * half))});
}

/// A tensor core reads the upper 19 bits.
inline float tf32_value(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

/// d = a b + c with a [16,K] and b [K,8] gathered from the lanes; sums in float64, rounded once.
template <int K>
void multiply(const float (&a)[16][K], const float (&b)[K][8], void* const* payloads) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MatrixProduct*>(payloads[lane]);
    float result[4];
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      double sum = own.c[i];
      for (int k = 0; k < K; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      result[i] = static_cast<float>(sum);
    }
    std::copy_n(result, 4, own.d);
  }
}

inline void complete_mma_bf16(void* const* payloads, unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MatrixProduct*>(payloads[lane]);
    for (int i = 0; i < 8; ++i) {
      const int row = lane / 4 + 8 * (i / 2 % 2), column = lane % 4 * 2 + i % 2 + 8 * (i / 4);
      a[row][column] = bf16_half(own.a[i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) {
      b[lane % 4 * 2 + i % 2 + 8 * (i / 2)][lane / 4] = bf16_half(own.b[i / 2], i % 2);
    }
  }
  multiply<16>(a, b, payloads);
}

inline void complete_mma_tf32(void* const* payloads, unsigned) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MatrixProduct*>(payloads[lane]);
    for (int i = 0; i < 4; ++i) {
      a[lane / 4 + 8 * (i % 2)][lane % 4 + 4 * (i / 2)] = tf32_value(own.a[i]);
    }
    for (int i = 0; i < 2; ++i) b[lane % 4 + 4 * i][lane / 4] = tf32_value(own.b[i]);
  }
  multiply<8>(a, b, payloads);
}

/// Lane 8 m + r names row r (8 bf16) of matrix m; register m of a lane is its pair of matrix m.
struct MatrixLoad {
  const void* row;
  uint32_t* d;
};

template <bool kTransposed>
void complete_ldmatrix(void* const* payloads, unsigned) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<MatrixLoad*>(payloads[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int row = kTransposed ? lane % 4 * 2 + i : lane / 4;
        const int column = kTransposed ? lane / 4 : lane % 4 * 2 + i;
        const auto& source = *static_cast<MatrixLoad*>(payloads[8 * matrix + row]);
        std::memcpy(&pair[i], static_cast<const uint16_t*>(source.row) + column, sizeof(pair[i]));
      }
      own.d[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
}

template <bool kTransposed>
void load_matrices(uint32_t (&d)[4], const void* row, const Site& site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail(site, "a row is not aligned to 16 bytes");
  MatrixLoad own{row, d};
  warp_operation(0xffffffffu, &own, complete_ldmatrix<kTransposed>, site);
}

}  // namespace dsv32::optimized::simt

// --- CUDA's own functions -----------------------------------------------------------------------

inline void __syncthreads(DSV32_SITE_PARAMETERS) {
  dsv32::optimized::simt::block_barrier({"__syncthreads", file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, DSV32_SITE_PARAMETERS) {
  int nothing = 0;
  dsv32::optimized::simt::warp_operation(mask, &nothing, [](void* const*, unsigned) {},
                                         {"__syncwarp", file, line});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, DSV32_SITE_PARAMETERS) {
  const dsv32::optimized::simt::Site site{"__shfl_sync", file, line};
  const int start = dsv32::optimized::simt::segment_start(width, site);
  return dsv32::optimized::simt::shuffle(mask, value, start + (source & (width - 1)), site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, DSV32_SITE_PARAMETERS) {
  const dsv32::optimized::simt::Site site{"__shfl_xor_sync", file, line};
  const int lane = dsv32::optimized::simt::lane_index();
  const int start = dsv32::optimized::simt::segment_start(width, site);
  const int source = lane ^ bits;
  return dsv32::optimized::simt::shuffle(mask, value, source < start + width ? source : lane, site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, DSV32_SITE_PARAMETERS) {
  const dsv32::optimized::simt::Site site{"__shfl_up_sync", file, line};
  const int lane = dsv32::optimized::simt::lane_index();
  const int source = lane - static_cast<int>(delta);
  const bool inside = source >= dsv32::optimized::simt::segment_start(width, site);
  return dsv32::optimized::simt::shuffle(mask, value, inside ? source : lane, site);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, DSV32_SITE_PARAMETERS) {
  const dsv32::optimized::simt::Site site{"__shfl_down_sync", file, line};
  const int lane = dsv32::optimized::simt::lane_index();
  const int source = lane + static_cast<int>(delta);
  const bool inside = source < dsv32::optimized::simt::segment_start(width, site) + width;
  return dsv32::optimized::simt::shuffle(mask, value, inside ? source : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, DSV32_SITE_PARAMETERS) {
  return dsv32::optimized::simt::ballot(mask, predicate != 0, {"__ballot_sync", file, line});
}

inline int __any_sync(unsigned mask, int predicate, DSV32_SITE_PARAMETERS) {
  return dsv32::optimized::simt::ballot(mask, predicate != 0, {"__any_sync", file, line}) != 0;
}

inline int __all_sync(unsigned mask, int predicate, DSV32_SITE_PARAMETERS) {
  return dsv32::optimized::simt::ballot(mask, predicate != 0, {"__all_sync", file, line}) == mask;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, DSV32_SITE_PARAMETERS) {
  const auto complete = [](void* const* payloads, unsigned lanes) {
    dsv32::optimized::simt::fold_votes(payloads, lanes, 0,
                                       [](unsigned sum, int, unsigned own) { return sum + own; });
  };
  return dsv32::optimized::simt::vote(mask, value, complete, {"__reduce_add_sync", file, line});
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, DSV32_SITE_PARAMETERS) {
  static_assert(std::is_integral_v<T>);
  dsv32::optimized::simt::Match own{static_cast<unsigned long long>(value), 0};
  dsv32::optimized::simt::warp_operation(mask, &own, dsv32::optimized::simt::complete_match,
                                         {"__match_any_sync", file, line});
  return own.result;
}

// Blocks run one after another and threads change places only where they wait, so a plain
// read-modify-write is atomic. A compare-and-swap may spin for another thread: it lets others go.
template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return dsv32::optimized::simt::atomic(address,
                                        [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  return dsv32::optimized::simt::atomic(address, [=](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  return dsv32::optimized::simt::atomic(address, [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  return dsv32::optimized::simt::atomic(address, [=](T old) { return old | value; });
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  return dsv32::optimized::simt::atomic(address, [=](T old) { return old & value; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return dsv32::optimized::simt::atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  dsv32::optimized::simt::yield_thread();
  return dsv32::optimized::simt::atomic(address,
                                        [=](T old) { return old == expected ? value : old; });
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(unsigned x) { return std::countl_zero(x); }
inline int __ffs(unsigned x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
using std::max;
using std::min;

// --- our wrappers -------------------------------------------------------------------------------

namespace dsv32::optimized::DSV32_BACKEND {

using simt::LaunchShape;

/// Runs `kernel(params)` over the grid before it returns. Throws simt::Fault.
template <typename Params>
void launch(void (*kernel)(Params), const LaunchShape& shape, Stream, const Params& params) {
  struct Call {
    void (*kernel)(Params);
    const Params& params;
  };
  const Call call{kernel, params};
  const auto run_thread = [](const void* argument) {
    const Call& own = *static_cast<const Call*>(argument);
    own.kernel(own.params);
  };
  simt::run_grid(shape, run_thread, &call);
}

template <typename T>
T* shared_memory(size_t byte_offset = 0) {
  return static_cast<T*>(simt::shared_bytes(byte_offset, sizeof(T), alignof(T)));
}

template <int kBytes>
void cp_async(void* shared, const void* global, bool valid = true, DSV32_SITE_PARAMETERS) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::async_copy(shared, global, kBytes, valid, {"cp_async", file, line});
}

inline void cp_async_commit() { simt::async_commit(); }

template <int kPendingGroups>
void cp_async_wait() {
  simt::async_wait(kPendingGroups);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              const float (&c)[4], DSV32_SITE_PARAMETERS) {
  simt::MatrixProduct own{a, b, c, d};
  simt::warp_operation(0xffffffffu, &own, simt::complete_mma_bf16,
                       {"mma_m16n8k16_bf16", file, line});
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4], DSV32_SITE_PARAMETERS) {
  simt::MatrixProduct own{a, b, c, d};
  simt::warp_operation(0xffffffffu, &own, simt::complete_mma_tf32,
                       {"mma_m16n8k8_tf32", file, line});
}

inline void ldmatrix_x4(uint32_t (&d)[4], const void* row, DSV32_SITE_PARAMETERS) {
  simt::load_matrices<false>(d, row, {"ldmatrix_x4", file, line});
}

inline void ldmatrix_x4_trans(uint32_t (&d)[4], const void* row, DSV32_SITE_PARAMETERS) {
  simt::load_matrices<true>(d, row, {"ldmatrix_x4_trans", file, line});
}

}  // namespace dsv32::optimized::DSV32_BACKEND
