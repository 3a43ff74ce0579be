#pragma once

/// The one header that kernels include. A `.cu` file written against it compiles with nvcc and, as
/// C++, for the SIMT executor, where every thread of a block is a fiber and runs in random order
/// between barriers.
///
/// Plain CUDA names mean the same in both: `__global__ __device__ __launch_bounds__`, `threadIdx
/// blockIdx blockDim gridDim`, `__syncthreads __syncwarp`, `__shfl_*_sync __ballot_sync __any_sync
/// __all_sync __match_any_sync __reduce_add_sync`, `atomicAdd atomicMax atomicMin atomicCAS
/// atomicExch atomicOr atomicAnd`, `__ldg __threadfence __popc __ffs __clz __float_as_uint ...`.
///
/// The rest is here, in both worlds:
///   launch(kernel, {.name, .grid, .block, .shared_bytes}, stream, params)
///   shared_memory<T>(byte_offset)            the block's dynamic shared memory (no `__shared__`)
///   cp_async<16>(shared, global, valid)      asynchronous copy, zeros where !valid
///   cp_async_commit(), cp_async_wait<N>()    readable after the wait (and a barrier, for others)
///   mma_m16n8k16_bf16, mma_m16n8k8_tf32, ldmatrix_x4, ldmatrix_x4_trans
///   bf16, to_float, from_float<T>, Vector<T, N>, mutant(...)
///
/// Not offered, so a kernel may not need it: blocks of one grid that wait for each other, spinning
/// on memory, `__activemask`, static `__shared__`, textures, streams inside a kernel.

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"
#include "src/optimized/simt/mutant.h"

#if defined(__CUDACC__)
#include "src/optimized/simt/cuda.h"
#elif defined(DSV32_SIMT)
#include "src/optimized/simt/emulated.h"
#else
#error "a kernel is compiled by nvcc, or with DSV32_SIMT for the executor"
#endif

namespace dsv32::optimized {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

/// N neighbours that are loaded and stored as one; the address is a multiple of the whole size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T lane[N];
};

template <int N, typename T>
__device__ inline Vector<T, N> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <int N, typename T>
__device__ inline void store_vector(T* to, const Vector<T, N>& values) {
  *reinterpret_cast<Vector<T, N>*>(to) = values;
}

/// How many T fill a 16-byte load.
template <typename T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

/// True when `pointer` may be read in 16-byte loads; a null pointer is never read.
DSV32_HOST_DEVICE inline bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <typename Integer>
DSV32_HOST_DEVICE constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

}  // namespace dsv32::optimized
