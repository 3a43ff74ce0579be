#pragma once

#include <bit>
#include <cstdint>

namespace dsv32::optimized::cpu {

/// e^x within 2 roundings of float32, in a form that vectorises (std::exp does not). 0 below -87,
/// infinity above 88.7; NaN stays NaN.
inline float exp_of(float x) {
  constexpr float kLowest = -87.0f, kHighest = 88.72283f, kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // the sum is ln 2
  constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer part
  const float clamped = x < kLowest ? kLowest : x > kHighest ? kHighest : x;
  const float shifted = clamped * kLog2E + kToInteger;
  const float n = shifted - kToInteger;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // The Taylor series: its seventh term is below half a rounding there.
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r * r + r + 1.0f;
  // 2^n in two factors: n reaches 128, which no single float exponent holds.
  const int32_t exponent = static_cast<int32_t>(n), half = exponent / 2;
  const float low = std::bit_cast<float>((half + 127) << 23);
  const float high = std::bit_cast<float>((exponent - half + 127) << 23);
  const float result = sum * low * high;
  if (x < kLowest) return 0.0f;
  if (x > kHighest) return std::bit_cast<float>(0x7f800000);
  return x != x ? x : result;
}

struct Sigmoid {
  float value;
  float rest;  // 1 - value, without the cancellation
};

inline Sigmoid sigmoid_and_rest(float x) {
  const float decay = exp_of(x < 0 ? x : -x), large = 1.0f / (1.0f + decay), small = decay * large;
  return x < 0 ? Sigmoid{small, large} : Sigmoid{large, small};
}

inline float sigmoid_of(float x) { return sigmoid_and_rest(x).value; }

}  // namespace dsv32::optimized::cpu
