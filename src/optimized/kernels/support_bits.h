#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"

/// Bitmasks of the keys that queries see, bit t % 32 of word t / 32 for key t: support_bits from
/// lists of keys, visible_bits from the padding mask and the causal edge.
namespace dsv32::optimized {

enum class SupportBitsMutant {
  none,
  wrong_tail,       // the last slot of a list is not read
  stale_words,      // words start with what lies in shared memory
  missing_barrier,  // words are written out before all slots are in
  off_by_one,       // a query does not see the key at its own place
  past_the_end,     // the last word reads past its keys
};

/// Most words of a row: a block keeps them in shared memory.
constexpr int64_t kMaxSupportWords = 32768;

struct SupportBitsParams {
  const int32_t* topk;  // [rows, slots]; entries outside [0, keys) are no keys
  int32_t* words;       // [rows, ceil(keys / 32)]
  int64_t rows;
  int64_t slots;
  int64_t keys;
};

/// Bit t of query (b, s): t <= first_query + s and mask[b][t].
struct VisibleBitsParams {
  const bool* mask;  // [batch, keys]
  int32_t* words;    // [batch, queries, ceil(keys / 32)]
  int64_t batch;
  int64_t queries;
  int64_t keys;
  int64_t first_query;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

void launch_support_bits(const SupportBitsParams& params, Stream stream);
void launch_visible_bits(const VisibleBitsParams& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
