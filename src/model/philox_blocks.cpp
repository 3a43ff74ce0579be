// Many blocks of one stream: eight to a vector where the CPU has AVX-512, else one by one, which
// keeps the 64-bit multiplier busy by itself. AVX2 is not worth a third form: it lacks a product of
// 64 bits, and four of 32 bits in half the lanes are slower than the scalar one.

#include <immintrin.h>

#include <cstring>

#include "src/model/philox.h"
#include "src/model/philox_block.h"

namespace dsv32 {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kVectors = 2;  // side by side: one waits for its products, the other works
constexpr int64_t kBlocksAtOnce = kLanes * kVectors;
constexpr int64_t kWords = 4;  // of a block

typedef uint64_t Vector __attribute__((vector_size(kLanes * sizeof(uint64_t))));

#define DSV32_AVX512 __attribute__((target("avx512f,avx512dq")))

// Products of the lower 32 bits of each lane. (The mask spares a warning of g++ 12.)
DSV32_AVX512 inline Vector product_of_lows(Vector x, uint64_t y) {
  constexpr __mmask8 kAll = 0xff;
  return (Vector)_mm512_maskz_mul_epu32(kAll, (__m512i)x,
                                        _mm512_set1_epi64(static_cast<int64_t>(y)));
}

// Upper half of the 128 bits of x * factor.
DSV32_AVX512 inline Vector upper_product(Vector x, uint64_t factor) {
  constexpr uint64_t kLow = 0xffffffff;
  const Vector x_high = x >> 32;
  const Vector upper = product_of_lows(x, factor >> 32) + (product_of_lows(x, factor) >> 32);
  const Vector middle = product_of_lows(x_high, factor) + (upper & kLow);
  return product_of_lows(x_high, factor >> 32) + (upper >> 32) + (middle >> 32);
}

// Word w of eight blocks in c[w] -> the blocks one after the other.
DSV32_AVX512 inline void store(const Vector (&c)[kWords], uint64_t* words) {
  const Vector even01 = __builtin_shufflevector(c[0], c[1], 0, 8, 2, 10, 4, 12, 6, 14);
  const Vector even23 = __builtin_shufflevector(c[2], c[3], 0, 8, 2, 10, 4, 12, 6, 14);
  const Vector odd01 = __builtin_shufflevector(c[0], c[1], 1, 9, 3, 11, 5, 13, 7, 15);
  const Vector odd23 = __builtin_shufflevector(c[2], c[3], 1, 9, 3, 11, 5, 13, 7, 15);
  const Vector block02 = __builtin_shufflevector(even01, even23, 0, 1, 8, 9, 2, 3, 10, 11);
  const Vector block13 = __builtin_shufflevector(odd01, odd23, 0, 1, 8, 9, 2, 3, 10, 11);
  const Vector block46 = __builtin_shufflevector(even01, even23, 4, 5, 12, 13, 6, 7, 14, 15);
  const Vector block57 = __builtin_shufflevector(odd01, odd23, 4, 5, 12, 13, 6, 7, 14, 15);
  const Vector in_order[kWords] = {
      __builtin_shufflevector(block02, block13, 0, 1, 2, 3, 8, 9, 10, 11),
      __builtin_shufflevector(block02, block13, 4, 5, 6, 7, 12, 13, 14, 15),
      __builtin_shufflevector(block46, block57, 0, 1, 2, 3, 8, 9, 10, 11),
      __builtin_shufflevector(block46, block57, 4, 5, 6, 7, 12, 13, 14, 15)};
  std::memcpy(words, in_order, sizeof in_order);
}

// kBlocksAtOnce blocks from `first` on.
DSV32_AVX512 inline void sixteen_blocks(std::array<uint64_t, 2> key, uint64_t first,
                                        uint64_t* words) {
  Vector c[kVectors][kWords] = {};
  for (int64_t v = 0; v < kVectors; ++v)
    c[v][0] = first + static_cast<uint64_t>(v * kLanes) + Vector{0, 1, 2, 3, 4, 5, 6, 7};
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kVectors; ++v) {
      const Vector upper_a = upper_product(c[v][0], kPhiloxFactors[0]);
      const Vector upper_b = upper_product(c[v][2], kPhiloxFactors[1]);
      const Vector lower_a = c[v][0] * kPhiloxFactors[0], lower_b = c[v][2] * kPhiloxFactors[1];
      c[v][0] = upper_b ^ c[v][1] ^ key[0];
      c[v][1] = lower_b;
      c[v][2] = upper_a ^ c[v][3] ^ key[1];
      c[v][3] = lower_a;
    }
    key[0] += kPhiloxSteps[0];
    key[1] += kPhiloxSteps[1];
  }
  for (int64_t v = 0; v < kVectors; ++v) store(c[v], words + v * kLanes * kWords);
}

DSV32_AVX512 void wide_blocks(std::array<uint64_t, 2> key, uint64_t first, int64_t count,
                              uint64_t* words) {
  for (int64_t i = 0; i < count; i += kBlocksAtOnce)
    sixteen_blocks(key, first + static_cast<uint64_t>(i), words + i * kWords);
}

bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
  return has;
}

}  // namespace

void philox4x64_blocks(std::array<uint64_t, 2> key, uint64_t first, int64_t count,
                       uint64_t* words) {
  const int64_t wide = has_avx512() ? count - count % kBlocksAtOnce : 0;
  if (wide > 0) wide_blocks(key, first, wide, words);
  for (int64_t i = wide; i < count; ++i) {
    const auto block = philox4x64_block({first + static_cast<uint64_t>(i), 0, 0, 0}, key);
    for (int64_t word = 0; word < kWords; ++word) words[i * kWords + word] = block[word];
  }
}

}  // namespace dsv32
