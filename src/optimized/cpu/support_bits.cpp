#include "src/optimized/ops/support_bits.h"

#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

constexpr int64_t kWordKeys = 32;

void set_bit(int32_t* words, int64_t key) {
  const uint32_t bit = 1u << key % kWordKeys;
  words[key / kWordKeys] =
      static_cast<int32_t>(static_cast<uint32_t>(words[key / kWordKeys]) | bit);
}

void list_rows(const SupportBitsParams& p) {
  const int64_t count = (p.keys + kWordKeys - 1) / kWordKeys;
  parallel_for(p.rows, row_grain(p.slots), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int32_t* words = p.words + row * count;
      std::fill_n(words, count, 0);
      for (int64_t i = 0; i < p.slots; ++i) {
        const int32_t key = p.topk[row * p.slots + i];
        if (key >= 0) set_bit(words, key);
      }
    }
  });
}

/// Words of the mask, then per query those up to its edge.
void visible_rows(const VisibleBitsParams& p) {
  const int64_t count = (p.keys + kWordKeys - 1) / kWordKeys;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::vector<int32_t> mask(count);
    for (int64_t t = 0; t < p.keys; ++t) {
      if (p.mask[b * p.keys + t]) set_bit(mask.data(), t);
    }
    parallel_for(p.queries, row_grain(count), [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        int32_t* words = p.words + (b * p.queries + s) * count;
        const int64_t seen = std::min(p.first_query + s + 1, p.keys), whole = seen / kWordKeys;
        std::copy_n(mask.data(), whole, words);
        std::fill(words + whole, words + count, 0);
        if (whole == count) continue;
        words[whole] = mask[whole] & static_cast<int32_t>((1u << seen % kWordKeys) - 1);
      }
    });
  }
}

at::Tensor support_bits(const at::Tensor& topk, int64_t keys) {
  return run_support_bits(topk, keys, [](const SupportBitsParams& params) { list_rows(params); });
}

at::Tensor visible_bits(const at::Tensor& mask, int64_t queries, int64_t first_query) {
  return run_visible_bits(mask, queries, first_query,
                          [](const VisibleBitsParams& params) { visible_rows(params); });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("support_bits", &support_bits);
  m.impl("visible_bits", &visible_bits);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
