// The cross entropy kernels in the executor, against float64.

#include "src/optimized/kernels/linear_cross_entropy.h"

#include <algorithm>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using namespace optimized;

struct Shape {
  int64_t rows, vocabulary, chunk;
};

// Around a block (256) of columns; chunks with a ragged end.
const Shape kShapes[] = {{1, 1, 1}, {3, 255, 255}, {4, 600, 256}, {2, 257, 100}};
constexpr float kDloss = 1.5f;
// Far from 0, where a rounding of lse is many of a probability.
constexpr double kMeanLogit = 40;

struct Inputs {
  Shape shape;
  std::vector<float> logits;
  std::vector<int64_t> labels;
  int64_t counted = 0;

  explicit Inputs(const Shape& s)
      : shape(s),
        logits(random_values<float>(s.rows * s.vocabulary, 1, 4, kMeanLogit)),
        labels(s.rows) {
    for (int64_t r = 0; r < s.rows; ++r) {
      labels[r] = r % 3 == 1 ? kIgnoredLabel : (r * 7 + s.vocabulary - 1) % s.vocabulary;
      counted += labels[r] == kIgnoredLabel ? 0 : 1;
    }
  }

  /// Columns [first, first + count) of every row.
  std::vector<float> columns(int64_t first, int64_t count) const {
    std::vector<float> part;
    for (int64_t r = 0; r < shape.rows; ++r) {
      const auto start = logits.begin() + r * shape.vocabulary + first;
      part.insert(part.end(), start, start + count);
    }
    return part;
  }
};

struct Want {
  Oracle loss, lse, dlogits;
};

Want oracle(const Inputs& in) {
  const auto [rows, vocabulary, chunk] = in.shape;
  Want want{Oracle(1), Oracle(rows, true), Oracle(rows * vocabulary, true)};
  for (int64_t r = 0; r < rows; ++r) {
    const float* logits = in.logits.data() + r * vocabulary;
    const bool counted = in.labels[r] != kIgnoredLabel;
    double sum = 0;
    for (int64_t i = 0; i < vocabulary; ++i) sum += std::exp(static_cast<double>(logits[i]));
    want.lse.value[r] = std::log(sum);
    want.lse.scale[r] = 1 + std::abs(std::log(sum));
    if (counted) want.loss.value[0] += (std::log(sum) - logits[in.labels[r]]) / in.counted;
    for (int64_t i = 0; counted && i < vocabulary; ++i) {
      const double prob = std::exp(logits[i] - std::log(sum)), scale = kDloss / in.counted;
      const double hit = i == in.labels[r] ? 1 : 0;
      want.dlogits.value[r * vocabulary + i] = (prob - hit) * scale;
      // exp takes up the roundings of its argument.
      const double spread = 1 + std::abs(logits[i] - std::log(sum));
      want.dlogits.scale[r * vocabulary + i] = (prob * spread + hit) * scale;
    }
  }
  return want;
}

template <typename T>
std::string check(const Inputs& in, const Want& want) {
  const auto [rows, vocabulary, chunk] = in.shape;
  std::vector<float> highest(rows, -std::numeric_limits<float>::infinity()), sum(rows);
  auto picked = unwritten<float>(rows), loss = unwritten<float>(1);
  std::vector<double> lse(rows, std::numeric_limits<double>::quiet_NaN());
  for (int64_t first = 0; first < vocabulary; first += chunk) {
    const int64_t count = std::min(chunk, vocabulary - first);
    launch_cross_entropy_chunk({.logits = in.columns(first, count).data(),
                                .labels = in.labels.data(),
                                .highest = highest.data(),
                                .sum = sum.data(),
                                .picked = picked.data(),
                                .rows = rows,
                                .columns = count,
                                .first_column = first},
                               nullptr);
  }
  launch_cross_entropy_loss({.labels = in.labels.data(),
                             .highest = highest.data(),
                             .sum = sum.data(),
                             .picked = picked.data(),
                             .lse = lse.data(),
                             .loss = loss.data(),
                             .rows = rows},
                            nullptr);
  const float scale = kDloss / static_cast<float>(in.counted);
  auto all = unwritten<T>(rows * vocabulary);
  for (int64_t first = 0; first < vocabulary; first += chunk) {
    const int64_t count = std::min(chunk, vocabulary - first);
    auto dlogits = unwritten<T>(rows * count);
    launch_cross_entropy_gradient<T>({.logits = in.columns(first, count).data(),
                                      .labels = in.labels.data(),
                                      .lse = lse.data(),
                                      .scale = &scale,
                                      .dlogits = dlogits.data(),
                                      .rows = rows,
                                      .columns = count,
                                      .first_column = first},
                                     nullptr);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(dlogits.begin() + r * count, count, all.begin() + r * vocabulary + first);
    }
  }
  const std::vector<float> rounded(lse.begin(), lse.end());
  return first_fault({beyond_limit("linear_cross_entropy.lse", rounded, want.lse),
                      beyond_limit("linear_cross_entropy.loss", loss, want.loss),
                      beyond_limit("linear_cross_entropy.dlogits", all, want.dlogits)});
}

std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const Inputs in(shape);
    const Want want = oracle(in);
    const std::string fault = on_every_schedule([&] {
      return first_fault({check<float>(in, want), check<bf16>(in, want)});
    });
    if (!fault.empty()) return std::to_string(shape.vocabulary) + " columns: " + fault;
  }
  return "";
}

/// The loss of many tokens: around the block that adds them.
std::string check_loss(int64_t rows) {
  const auto highest = random_values<float>(rows, 1, 4), picked = random_values<float>(rows, 2, 4);
  const std::vector<int64_t> labels(rows);
  const std::vector<float> sum(rows, 2.0f);
  auto loss = unwritten<float>(1);
  std::vector<double> lse(rows);
  launch_cross_entropy_loss({.labels = labels.data(),
                             .highest = highest.data(),
                             .sum = sum.data(),
                             .picked = picked.data(),
                             .lse = lse.data(),
                             .loss = loss.data(),
                             .rows = rows},
                            nullptr);
  Oracle want(1, true);
  for (int64_t r = 0; r < rows; ++r) {
    want.value[0] += (highest[r] + std::log(2.0) - picked[r]) / rows;
    want.scale[0] += (std::abs(highest[r]) + 1 + std::abs(picked[r])) / rows;
  }
  return beyond_limit("linear_cross_entropy.loss", loss, want);
}

TEST(CrossEntropyKernel, AddsTheLossOfManyTokens) {
  for (const int64_t rows : {255, 256, 257, 1000}) {
    EXPECT_EQ(on_every_schedule([&] { return check_loss(rows); }), "");
  }
}

TEST(CrossEntropyKernel, MatchesFloat64) { EXPECT_EQ(check_shapes(), ""); }

TEST(CrossEntropyKernel, TakesLogitsOfMinusInfinity) {
  Inputs in({4, 6, 3});
  for (int64_t r = 0; r < 4; ++r) {  // the whole first chunk
    std::fill_n(in.logits.begin() + r * 6, 3, -std::numeric_limits<float>::infinity());
    if (in.labels[r] != kIgnoredLabel) in.labels[r] = 5;
  }
  Want want = oracle(in);
  for (double& scale : want.dlogits.scale) scale = std::isfinite(scale) ? scale : 1;
  EXPECT_EQ(check<float>(in, want), "");
}

TEST(CrossEntropyKernel, NoCountedTokenGivesNan) {
  const std::vector<int64_t> labels(3, kIgnoredLabel);
  const std::vector<float> ones(3, 1.0f);
  std::vector<double> lse(3);
  std::vector<float> loss(1);
  launch_cross_entropy_loss({.labels = labels.data(),
                             .highest = ones.data(),
                             .sum = ones.data(),
                             .picked = ones.data(),
                             .lse = lse.data(),
                             .loss = loss.data(),
                             .rows = 3},
                            nullptr);
  EXPECT_TRUE(std::isnan(loss[0]));
  EXPECT_EQ(lse, std::vector<double>(ones.begin(), ones.end()));
}

TEST(CrossEntropyKernel, EveryMutantIsFound) {
  using enum CrossEntropyMutant;
  expect_found({wrong_tail, not_rescaled, wrong_label, counts_ignored, dropped_row,
                ignored_gradient, missing_barrier, rounded_lse},
               check_shapes);
}

}  // namespace
}  // namespace dsv32::suites
