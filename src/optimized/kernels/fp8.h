#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// fp8_dequant: e4m3fn codes times the scale of their 128 x 128 block, bit-exact. fp8_quant: codes
/// and power-of-two scales of groups of 128 along the last axis. Scales of type ue8m0 are a
/// byte b for 2^(b - 127), 255 for NaN.
namespace dsv32::optimized {

enum class Fp8Mutant {
  none,
  wrong_tail,     // the last column is not written
  row_scale,      // a block's rows take the scale of the block above
  no_subnormals,  // codes below the smallest normal number are read as normal ones
  truncated,      // codes are cut off, not rounded to the nearest
  loose_scale,    // the scale is the power of two above the needed one
  stale_group,    // lanes behind the end of a ragged group take part
};

constexpr int64_t kFp8Block = 128;
constexpr float kFp8Highest = 448.0f;
/// A group's largest magnitude counts as this at least.
constexpr float kFp8Floor = 1e-4f;

DSV32_HOST_DEVICE inline float float_of_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

DSV32_HOST_DEVICE inline uint32_t bits_of_float(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return std::bit_cast<uint32_t>(x);
#endif
}

/// The value of a code, exact: 1 sign bit, 4 of exponent (bias 7), 3 of mantissa; 0x7f and 0xff are
/// NaN.
DSV32_HOST_DEVICE inline float decode_e4m3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  if (magnitude == 0x7fu) return float_of_bits(sign | 0x7fc00000u);
  if (magnitude >= 8) return float_of_bits(sign | ((magnitude << 20) + (120u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-9f;
  return float_of_bits(sign | bits_of_float(subnormal));
}

/// The code of a value, to nearest, ties to even; beyond 448 it is that of 448; a NaN stays one.
DSV32_HOST_DEVICE inline uint8_t encode_e4m3(float x) {
  const uint32_t bits = bits_of_float(x), sign = bits >> 24 & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (magnitude >= bits_of_float(kFp8Highest)) return static_cast<uint8_t>(sign | 0x7eu);
  if (magnitude < 121u << 23) {  // below 2^-6
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(rintf(fabsf(x) * 0x1p9f)));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

DSV32_HOST_DEVICE inline float decode_ue8m0(uint8_t exponent) {
  if (exponent == 255) return float_of_bits(0x7fc00000u);
  return float_of_bits(exponent == 0 ? 0x00400000u : static_cast<uint32_t>(exponent) << 23);
}

/// The least scale 2^(b - 127) with highest / scale <= 448; `highest` is finite and no less than
/// kFp8Floor.
DSV32_HOST_DEVICE inline uint8_t fp8_scale_of(float highest) {
  const uint32_t bits = bits_of_float(highest);
  const bool above = (bits & 0x7fffffu) > 0x600000u;  // 448 = 1.75 * 2^8
  return static_cast<uint8_t>((bits >> 23) - 8u + (above ? 1u : 0u));
}

/// T: float or bf16. value = code * scale, one rounding to float32, then one to T.
template <typename T>
struct Fp8DequantParams {
  const uint8_t* codes;      // [batch, rows, columns]
  const float* scales;       // [batch, ceil(rows/128), ceil(columns/128)]; null: exponents
  const uint8_t* exponents;  // the same as ue8m0; null: scales
  T* values;                 // [batch, rows, columns]
  int64_t batch;
  int64_t rows;
  int64_t columns;

  DSV32_HOST_DEVICE float scale(int64_t matrix, int64_t row, int64_t column) const {
    const int64_t down = (rows + kFp8Block - 1) / kFp8Block;
    const int64_t across = (columns + kFp8Block - 1) / kFp8Block;
    const int64_t block = (matrix * down + row / kFp8Block) * across + column / kFp8Block;
    return scales != nullptr ? scales[block] : decode_ue8m0(exponents[block]);
  }
};

template <typename T>
struct Fp8QuantParams {
  const T* values;     // [rows, columns]
  uint8_t* codes;      // [rows, columns]
  uint8_t* exponents;  // [rows, ceil(columns/128)] ue8m0
  int64_t rows;
  int64_t columns;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_fp8_dequant(const Fp8DequantParams<T>& params, Stream stream);
template <typename T>
void launch_fp8_quant(const Fp8QuantParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
