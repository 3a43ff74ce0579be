#pragma once

#include <bit>
#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// select_topk: the first k of each row under the total order of docs/spec.md 1.6: score
/// descending, then index ascending, -0 == +0. Exact: a radix select on 32-bit keys that counts and
/// never buckets.
namespace dsv32::optimized {

enum class SelectTopkMutant {
  none,
  stale_histogram,  // counts start with what lies in shared memory
  dropped_pass,     // the last digit of the key is not looked at
  higher_index,     // among equal scores the last ones are taken
  wrong_tail,       // the last score of a row is not seen
  missing_barrier,  // a warp reads the counts of others before they are there
  signed_zero,      // -0 sorts below +0
  unstable_order,   // by_score: the index does not break ties
};

/// The key of a score: a larger score has a larger key, equal scores have equal keys. 0 is never
/// selected: -inf and NaN.
DSV32_HOST_DEVICE inline uint32_t topk_key(float score, bool merge_zeros = true) {
#if defined(__CUDA_ARCH__)
  const uint32_t bits = __float_as_uint(score);
#else
  const uint32_t bits = std::bit_cast<uint32_t>(score);
#endif
  constexpr uint32_t kSign = 0x80000000u, kInfinity = 0x7f800000u;
  if ((bits & ~kSign) > kInfinity || bits == (kSign | kInfinity)) return 0;
  if (merge_zeros && bits == kSign) return kSign;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

/// Largest k.
constexpr int64_t kMaxTopk = int64_t{1} << 16;

struct SelectTopkParams {
  const float* scores;  // [rows, keys]
  int32_t* topk;        // [rows, k], -1 after the last one selected
  uint64_t* workspace;  // [rows, topk_sort_width(k)] if by_score, else null
  int64_t rows;
  int64_t keys;   // < 2^31
  int64_t k;      // 1 to kMaxTopk; may exceed `keys`
  bool by_score;  // order of a row: descending score; else ascending index
};

/// Words per row that sorting by score works in: the power of two that holds k.
DSV32_HOST_DEVICE constexpr int64_t topk_sort_width(int64_t k) {
  int64_t width = 1;
  while (width < k) width *= 2;
  return width;
}

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

void launch_select_topk(const SelectTopkParams& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
