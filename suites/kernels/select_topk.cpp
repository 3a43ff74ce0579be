// The select_topk kernel in the executor, against a stable sort.

#include "src/optimized/kernels/select_topk.h"

#include <algorithm>
#include <numeric>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using optimized::SelectTopkMutant;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  const char* name;
  int64_t rows, keys, k;
  std::vector<float> scores;  // [rows, keys]
};

/// The total order of docs/spec.md 1.6 as a stable sort. -inf and NaN are never selected.
std::vector<int32_t> oracle(const Case& c, bool by_score) {
  std::vector<int32_t> want;
  for (int64_t row = 0; row < c.rows; ++row) {
    const float* scores = c.scores.data() + row * c.keys;
    std::vector<int32_t> order;
    for (int64_t i = 0; i < c.keys; ++i) {
      if (scores[i] > -kInf) order.push_back(static_cast<int32_t>(i));
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    order.resize(std::min<size_t>(order.size(), static_cast<size_t>(c.k)));
    if (!by_score) std::sort(order.begin(), order.end());
    order.resize(static_cast<size_t>(c.k), -1);
    want.insert(want.end(), order.begin(), order.end());
  }
  return want;
}

std::string check(const Case& c, bool by_score) {
  std::vector<int32_t> got(static_cast<size_t>(c.rows * c.k), -7);
  std::vector<uint64_t> workspace(
      static_cast<size_t>(by_score ? c.rows * optimized::topk_sort_width(c.k) : 0));
  launch_select_topk({.scores = c.scores.data(),
                      .topk = got.data(),
                      .workspace = workspace.data(),
                      .rows = c.rows,
                      .keys = c.keys,
                      .k = c.k,
                      .by_score = by_score},
                     nullptr);
  const std::vector<int32_t> want = oracle(c, by_score);
  const auto [a, b] = std::mismatch(want.begin(), want.end(), got.begin());
  if (a == want.end()) return "";
  return std::string(c.name) + (by_score ? " by score" : "") + ": place " +
         std::to_string(a - want.begin()) + ": expected " + std::to_string(*a) + ", got " +
         std::to_string(*b);
}

Case normal(int64_t rows, int64_t keys, int64_t k) {
  return {"normal", rows, keys, k, random_values<float>(rows * keys, keys + k)};
}

Case filled(const char* name, int64_t keys, int64_t k, float value) {
  return {name, 1, keys, k, std::vector<float>(static_cast<size_t>(keys), value)};
}

/// Few distinct values, so that the threshold falls among equal scores; zeros of both signs.
Case ties(int64_t keys, int64_t k) {
  const float values[] = {0.0f, -0.0f, 1.0f, -1.0f, 1.5f, -kInf};
  Case c{"ties", 1, keys, k, random_values<float>(keys, k)};
  for (float& x : c.scores) x = values[static_cast<int>(std::abs(x) * 1000) % 6];
  return c;
}

/// Scores that differ in the last bits of the key alone.
Case close(int64_t keys, int64_t k) {
  Case c = filled("close", keys, k, 0);
  for (int64_t i = 0; i < keys; ++i) {
    c.scores[i] = std::bit_cast<float>(0x3f800000u + static_cast<uint32_t>(i * 37 % keys));
  }
  return c;
}

/// As a causal row: keys after the visible ones are -inf.
Case causal(int64_t keys, int64_t k, int64_t visible) {
  Case c{"causal", 1, keys, k, random_values<float>(keys, visible)};
  std::fill(c.scores.begin() + visible, c.scores.end(), -kInf);
  return c;
}

Case extremes() {
  const float tiny = std::numeric_limits<float>::denorm_min();
  const float huge = std::numeric_limits<float>::max();
  return {"extremes",
          1,
          12,
          9,
          {-huge, kNan, tiny, -tiny, kInf, 0.0f, -0.0f, -kInf, huge, -kNan, kInf, -1.0f}};
}

// Keys around a warp, a block (512) and parts of a block; k around the number of keys.
std::vector<Case> small_cases() {
  std::vector<Case> cases = {extremes(), filled("no keys", 0, 3, 0)};
  for (const int64_t keys : {1, 31, 32, 33, 512, 513, 1100}) {
    cases.push_back(normal(keys < 100 ? 3 : 1, keys, keys / 2 + 1));
    cases.push_back(ties(keys, keys / 3 + 1));
  }
  for (const int64_t k : {1, 32, 33, 34}) cases.push_back(normal(2, 33, k));
  for (const int64_t visible : {0, 7, 8, 9, 40}) cases.push_back(causal(40, 8, visible));
  cases.push_back(close(600, 77));
  cases.push_back(filled("all equal", 600, 5, 2.5f));
  cases.push_back(filled("all -inf", 600, 5, -kInf));
  cases.push_back(filled("all NaN", 40, 5, kNan));
  return cases;
}

std::string check_cases() {
  for (const Case& c : small_cases()) {
    const std::string fault = on_every_schedule([&] {
      return first_fault({check(c, false), check(c, true)});
    });
    if (!fault.empty()) {
      return std::to_string(c.keys) + " keys, k " + std::to_string(c.k) + ": " + fault;
    }
  }
  return "";
}

TEST(SelectTopkKernel, IsTheStableSort) { EXPECT_EQ(check_cases(), ""); }

TEST(SelectTopkKernel, TakesTheFirstOfAHundredThousandEqualScores) {
  for (const int64_t k : {1, 2048, 65536}) {
    EXPECT_EQ(check(filled("one value", 100000, k, -0.25f), k == 2048), "");
  }
}

TEST(SelectTopkKernel, KeepsWhatIsAboveAFloodOfEqualScores) {
  Case c = filled("flood", 100000, 2048, 0.0f);
  for (int64_t i = 0; i < c.keys; i += 97) c.scores[i] = static_cast<float>(i % 5) - 2;
  EXPECT_EQ(check(c, false), "");
  EXPECT_EQ(check(c, true), "");
}

TEST(SelectTopkKernel, EveryMutantIsFound) {
  expect_found({SelectTopkMutant::stale_histogram, SelectTopkMutant::dropped_pass,
                SelectTopkMutant::higher_index, SelectTopkMutant::wrong_tail,
                SelectTopkMutant::missing_barrier, SelectTopkMutant::signed_zero,
                SelectTopkMutant::unstable_order},
               check_cases);
}

}  // namespace
}  // namespace dsv32::suites
