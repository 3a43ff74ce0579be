#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#define DSV32_HOST_DEVICE __host__ __device__
#else
#define DSV32_HOST_DEVICE
#endif

namespace dsv32::optimized {

/// bfloat16 as it lies in memory. Arithmetic is done in float32.
struct bf16 {
  uint16_t bits;
};

DSV32_HOST_DEVICE inline float to_float(float x) { return x; }

DSV32_HOST_DEVICE inline float to_float(bf16 x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
#else
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
#endif
}

/// Rounds to nearest, ties to even. A NaN stays one.
DSV32_HOST_DEVICE inline bf16 to_bf16(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(is_nan ? 0x7fffu : rounded)};
#endif
}

template <typename T>
DSV32_HOST_DEVICE inline T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return x;
  } else {
    return to_bf16(x);
  }
}

}  // namespace dsv32::optimized
