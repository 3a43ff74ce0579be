#include "src/optimized/ops/select_topk.h"

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <vector>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

// The key is looked at in three digits, the highest first: 11, 11 and 10 bits. The first digit of a
// key that can be selected is never 0.
constexpr std::array<int, 3> kShifts = {21, 10, 0};
constexpr uint32_t kBins = 2048;

DSV32_CLONES void make_keys(const float* scores, uint32_t* keys, int64_t n) {
  for (int64_t i = 0; i < n; ++i) keys[i] = topk_key(scores[i]);
}

/// What is taken: keys above `key`, and the first `equals` that are equal to it.
struct Threshold {
  uint32_t key;
  int64_t equals;
};

/// Scratch memory of one thread.
struct Row {
  std::vector<uint32_t> keys;
  std::vector<uint32_t> candidates;  // keys whose digits so far are the threshold's
  std::vector<uint64_t> sorted;

  explicit Row(int64_t n) : keys(n), candidates(n) {}
};

/// The digit in which the `remaining`-th largest key lies; takes those above off `remaining`. 0:
/// there are fewer keys.
uint32_t find_digit(const std::array<int32_t, kBins>& counts, int64_t* remaining, uint32_t lowest) {
  for (uint32_t digit = kBins; digit-- > lowest;) {
    if (counts[digit] >= *remaining) return digit;
    *remaining -= counts[digit];
  }
  return 0;
}

/// key 0: fewer than k keys can be selected, all of them are taken.
Threshold find_threshold(Row& row, int64_t k) {
  const uint32_t* keys = row.keys.data();
  auto count = static_cast<int64_t>(row.keys.size());
  uint32_t found = 0;
  int64_t remaining = k;
  for (const int shift : kShifts) {
    const uint32_t mask = shift == 0 ? kBins / 2 - 1 : kBins - 1;
    const bool is_first = shift == kShifts[0];
    std::array<int32_t, kBins> counts{};
    for (int64_t i = 0; i < count; ++i) ++counts[(keys[i] >> shift) & mask];
    const uint32_t digit = find_digit(counts, &remaining, is_first ? 1 : 0);
    if (is_first && digit == 0) return {0, 0};
    found |= digit << shift;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      row.candidates[kept] = keys[i];
      kept += ((keys[i] >> shift) & mask) == digit;
    }
    keys = row.candidates.data();
    count = kept;
  }
  return {found, remaining};
}

/// Indices of what is taken, ascending; the number of them.
int64_t take(const Row& row, Threshold threshold, int64_t k, int32_t* topk) {
  int64_t taken = 0, equals = 0;
  const auto n = static_cast<int64_t>(row.keys.size());
  for (int64_t i = 0; i < n && taken < k; ++i) {
    const uint32_t key = row.keys[i];
    const bool is_equal = key == threshold.key && equals < threshold.equals;
    topk[taken] = static_cast<int32_t>(i);
    equals += is_equal;
    taken += is_equal || key > threshold.key;
  }
  return taken;
}

/// Descending key, then ascending index.
void sort_by_key(Row& row, int32_t* topk, int64_t count) {
  row.sorted.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<uint32_t>(topk[i]);
    row.sorted[i] = uint64_t{~row.keys[index]} << 32 | index;
  }
  std::sort(row.sorted.begin(), row.sorted.end());
  for (int64_t i = 0; i < count; ++i) topk[i] = static_cast<int32_t>(row.sorted[i]);
}

void select(const SelectTopkParams& p) {
  parallel_for(p.rows, row_grain(p.keys), [&](int64_t begin, int64_t end) {
    Row row(p.keys);
    for (int64_t i = begin; i < end; ++i) {
      int32_t* topk = p.topk + i * p.k;
      make_keys(p.scores + i * p.keys, row.keys.data(), p.keys);
      const int64_t count = take(row, find_threshold(row, p.k), p.k, topk);
      if (p.by_score) sort_by_key(row, topk, count);
      std::fill(topk + count, topk + p.k, -1);
    }
  });
}

at::Tensor select_topk(const at::Tensor& scores, int64_t k, bool by_score) {
  return run_select_topk(scores, k, by_score, [](const auto& params) { select(params); });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) { m.impl("select_topk", &select_topk); }

}  // namespace
}  // namespace dsv32::optimized::cpu
