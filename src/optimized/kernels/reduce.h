#pragma once

/// Sums over a warp and over a block, in a fixed order: the same bits on every run.

#include "src/optimized/simt/simt.h"

namespace dsv32::optimized {

enum class ReduceMutant { none, missing_barrier };

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

/// Every lane gets the sum over the warp; all 32 lanes must call it.
__device__ inline float warp_sum(float value) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, bits);
  }
  return value;
}

/// Every thread gets the sum over the block, whose size is a multiple of 32. `scratch` is shared
/// memory for 32 floats, free again when the function returns.
__device__ inline float block_sum(float value, float* scratch) {
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const unsigned warps = blockDim.x / kWarpSize;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  if (!mutant(ReduceMutant::missing_barrier)) __syncthreads();
  const float total = warp_sum(lane < warps ? scratch[lane] : 0.0f);
  __syncthreads();
  return total;
}

}  // namespace dsv32::optimized::DSV32_BACKEND
