// support_bits and visible_bits in the executor, against plain loops.

#include "src/optimized/kernels/support_bits.h"

#include <memory>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using optimized::SupportBitsMutant;

// Around a word of keys, a block of slots and of words.
const int64_t kKeys[] = {1, 31, 32, 33, 64, 100, 4097};
const int64_t kSlots[] = {1, 3, 127, 128, 129};
const int64_t kQueries[] = {1, 5, 34};

int64_t words_of(int64_t keys) { return (keys + 31) / 32; }

void set_bit(std::vector<int32_t>& words, int64_t row, int64_t keys, int64_t key) {
  auto& word = words[row * words_of(keys) + key / 32];
  word = static_cast<int32_t>(static_cast<uint32_t>(word) | 1u << key % 32);
}

std::string compare(const std::vector<int32_t>& got, const std::vector<int32_t>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i] != want[i]) return "word " + std::to_string(i) + " differs";
  }
  return "";
}

/// Lists with -1, and with an entry past the keys, which is no key.
std::string check_lists(int64_t keys, int64_t slots) {
  constexpr int64_t kRows = 3;
  std::mt19937_64 engine(1);
  std::vector<int32_t> topk, want(kRows * words_of(keys));
  for (int64_t i = 0; i < kRows * slots; ++i) {
    const auto key = static_cast<int64_t>(engine() % (keys + 2)) - 1;
    topk.push_back(static_cast<int32_t>(i == 0 ? keys - 1 : key));
    if (topk.back() >= 0 && topk.back() < keys) set_bit(want, i / slots, keys, topk.back());
  }
  return on_every_schedule([&] {
    std::vector<int32_t> got(want.size(), 0x5a5a5a5a);
    launch_support_bits(
        {.topk = topk.data(), .words = got.data(), .rows = kRows, .slots = slots, .keys = keys},
        nullptr);
    return compare(got, want);
  });
}

std::string check_visible(int64_t keys, int64_t queries) {
  constexpr int64_t kBatch = 3;
  const int64_t first_query = keys / 2;
  const auto mask = std::make_unique<bool[]>(kBatch * keys);
  std::vector<int32_t> want(kBatch * queries * words_of(keys));
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t t = 0; t < keys; ++t) {
      mask[b * keys + t] = t >= b && t % 7 != 6;
      for (int64_t s = 0; s < queries; ++s) {
        const bool sees = t <= first_query + s && mask[b * keys + t];
        if (sees) set_bit(want, b * queries + s, keys, t);
      }
    }
  }
  return on_every_schedule([&] {
    std::vector<int32_t> got(want.size(), 0x5a5a5a5a);
    launch_visible_bits({.mask = mask.get(),
                         .words = got.data(),
                         .batch = kBatch,
                         .queries = queries,
                         .keys = keys,
                         .first_query = first_query},
                        nullptr);
    return compare(got, want);
  });
}

std::string check_all_lists() {
  for (const int64_t keys : kKeys) {
    for (const int64_t slots : kSlots) {
      const std::string fault = check_lists(keys, slots);
      if (!fault.empty()) return std::to_string(keys) + ", " + std::to_string(slots) + ": " + fault;
    }
  }
  return "";
}

std::string check_all_visible() {
  for (const int64_t keys : {1, 31, 32, 33, 100}) {
    for (const int64_t queries : kQueries) {
      const std::string fault = check_visible(keys, queries);
      if (!fault.empty()) {
        return std::to_string(keys) + ", " + std::to_string(queries) + ": " + fault;
      }
    }
  }
  return "";
}

TEST(SupportBitsKernel, SetsTheListedKeys) { EXPECT_EQ(check_all_lists(), ""); }
TEST(SupportBitsKernel, SetsTheVisibleKeys) { EXPECT_EQ(check_all_visible(), ""); }

TEST(SupportBitsKernel, EveryMutantIsFound) {
  expect_found({SupportBitsMutant::wrong_tail, SupportBitsMutant::stale_words,
                SupportBitsMutant::missing_barrier},
               check_all_lists);
  expect_found({SupportBitsMutant::off_by_one}, check_all_visible);
}

// The sanitizer stops a read past the mask.
TEST(SupportBitsKernel, AReadPastTheMaskIsFound) {
  optimized::active_mutant<SupportBitsMutant> = SupportBitsMutant::past_the_end;
  EXPECT_DEATH(check_visible(33, 34), "heap-buffer-overflow");
  optimized::active_mutant<SupportBitsMutant> = SupportBitsMutant::none;
}

}  // namespace
}  // namespace dsv32::suites
