// The embedding's backward kernel in the executor, against float64.

#include "src/optimized/kernels/embedding.h"

#include <algorithm>
#include <numeric>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using namespace optimized;

struct Shape {
  int64_t tokens, hidden, vocabulary;
};

// Around a block (256) of columns; every token of one id; more ids than tokens.
const Shape kShapes[] = {{1, 1, 1}, {5, 255, 3}, {7, 256, 100}, {4, 257, 2}, {40, 3, 1}};

template <typename T>
struct Inputs {
  Shape shape;
  std::vector<T> dout;
  std::vector<int64_t> ids, sorted, order;

  explicit Inputs(const Shape& s)
      : shape(s), dout(random_values<T>(s.tokens * s.hidden, 1)), order(s.tokens) {
    std::mt19937_64 engine(2);
    for (int64_t t = 0; t < s.tokens; ++t) {
      ids.push_back(static_cast<int64_t>(engine() % s.vocabulary));
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
    for (const int64_t token : order) sorted.push_back(ids[token]);
  }
};

template <typename T>
std::vector<T> run(const Inputs<T>& in) {
  std::vector<T> dweight(in.shape.vocabulary * in.shape.hidden);
  launch_embedding_backward<T>({.dout = in.dout.data(),
                                .ids = in.sorted.data(),
                                .order = in.order.data(),
                                .dweight = dweight.data(),
                                .tokens = in.shape.tokens,
                                .hidden = in.shape.hidden,
                                .vocabulary = in.shape.vocabulary},
                               nullptr);
  return dweight;
}

template <typename T>
Oracle oracle(const Inputs<T>& in) {
  const auto [tokens, hidden, vocabulary] = in.shape;
  Oracle want(vocabulary * hidden, true);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < hidden; ++i) {
      const double term = to_float(in.dout[t * hidden + i]);
      want.value[in.ids[t] * hidden + i] += term;
      want.scale[in.ids[t] * hidden + i] += std::abs(term);
    }
  }
  return want;
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const Inputs<T> in(shape);
    const Oracle want = oracle(in);
    const std::string fault =
        on_every_schedule([&] { return beyond_limit("embedding.dweight", run(in), want); });
    if (!fault.empty()) return std::to_string(shape.hidden) + " hidden: " + fault;
  }
  return "";
}

std::string check_determinism() {
  const Inputs<float> in({60, 33, 4});
  simt::set_schedule_seed(0);
  const std::vector<float> first = run(in);
  return on_every_schedule(
      [&] { return std::string(same_bits(first, run(in)) ? "" : "other bits"); });
}

std::string check_all() {
  return first_fault({check_determinism(), check_shapes<float>(), check_shapes<bf16>()});
}

TEST(EmbeddingKernel, MatchesFloat64) {
  EXPECT_EQ(check_shapes<float>(), "");
  EXPECT_EQ(check_shapes<bf16>(), "");
}

TEST(EmbeddingKernel, GivesTheSameBitsOnEverySchedule) { EXPECT_EQ(check_determinism(), ""); }

TEST(EmbeddingKernel, LeavesOutIdsOutsideTheVocabulary) {
  Inputs<float> in({3, 4, 5});
  in.sorted = {-1, 2, 5};
  in.order = {0, 1, 2};
  std::vector<float> want(20);
  std::copy_n(in.dout.begin() + 4, 4, want.begin() + 8);
  EXPECT_EQ(run(in), want);
}

TEST(EmbeddingKernel, EveryMutantIsFound) {
  using enum EmbeddingMutant;
  expect_found({first_only, dropped_last, wrong_tail, lost_order, atomic_sum}, check_all);
}

}  // namespace
}  // namespace dsv32::suites
