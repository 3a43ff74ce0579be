// The index_scores kernels in the executor, against float64.

#include "src/optimized/kernels/index_scores.h"

#include <algorithm>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using optimized::IndexScoresMutant;
using optimized::IndexSizes;

struct Case {
  IndexSizes sizes;
  int64_t first_query;
  int64_t topk;  // of the sparse gradient
};

// Around a tile of the forward (64 queries, 128 keys) and of the backward (64 rows, 64 keys), a
// step of a product (32) and a vector (4 or 8).
const std::vector<Case> kCases = {{{1, 1, 1, 1, 1}, 0, 1},      {{2, 3, 5, 4, 32}, 2, 4},
                                  {{1, 64, 64, 1, 8}, 0, 9},    {{1, 65, 129, 1, 8}, 64, 65},
                                  {{1, 17, 64, 4, 33}, 47, 64}, {{2, 2, 130, 3, 128}, 100, 11},
                                  {{1, 2, 63, 65, 16}, 30, 20}, {{1, 9, 140, 2, 16}, 0, 3}};
const std::vector<Case> kFewCases = {
    {{2, 3, 5, 4, 32}, 2, 4}, {{1, 20, 70, 5, 12}, 50, 9}, {{1, 66, 70, 1, 4}, 1, 9}};

struct Place {
  int64_t b, s, t;
};

template <typename T>
struct Inputs {
  IndexSizes n;
  int64_t first_query, width;
  std::vector<T> q, k;
  std::vector<float> weights, dense, sparse;
  std::vector<char> mask;
  std::vector<int32_t> topk;

  explicit Inputs(const Case& c)
      : n(c.sizes),
        first_query(c.first_query),
        width(c.topk),
        q(random_values<T>(n.batch * n.queries * n.heads * n.dim, 1)),
        k(random_values<T>(n.batch * n.keys * n.dim, 2)),
        weights(random_values<float>(n.batch * n.queries * n.heads, 3)),
        dense(random_values<float>(n.batch * n.queries * n.keys, 4)),
        sparse(random_values<float>(n.batch * n.queries * width, 5)),
        mask(static_cast<size_t>(n.batch * n.keys), 1),
        topk(static_cast<size_t>(n.batch * n.queries * width), -1) {
    for (int64_t t = 0; t + 1 < n.keys && t < 3; ++t) mask[(n.batch - 1) * n.keys + t] = 0;
    for (int64_t row = 0; row < n.batch * n.queries; ++row) {
      // Distinct keys in falling order; the last place of every other row stays empty.
      for (int64_t i = 0; i < std::min(width, n.keys) - row % 2; ++i) {
        topk[row * width + i] = static_cast<int32_t>(n.keys - 1 - i);
      }
    }
  }

  const bool* mask_data() const { return reinterpret_cast<const bool*>(mask.data()); }
  bool visible(const Place& at) const {
    return at.t <= first_query + at.s && mask[at.b * n.keys + at.t] != 0;
  }
  /// q . k and the sum of its terms' magnitudes.
  std::pair<double, double> product(const Place& at, int64_t head) const {
    double sum = 0, size = 0;
    for (int64_t d = 0; d < n.dim; ++d) {
      const double term =
          optimized::to_float(q[((at.b * n.queries + at.s) * n.heads + head) * n.dim + d]) *
          static_cast<double>(optimized::to_float(k[(at.b * n.keys + at.t) * n.dim + d]));
      sum += term;
      size += std::abs(term);
    }
    return {sum, size};
  }
  double weight(const Place& at, int64_t head) const {
    return weights[(at.b * n.queries + at.s) * n.heads + head];
  }
};

template <typename Body>
void for_each_place(const IndexSizes& n, Body body) {
  for (int64_t b = 0; b < n.batch; ++b) {
    for (int64_t s = 0; s < n.queries; ++s) {
      for (int64_t t = 0; t < n.keys; ++t) body(Place{b, s, t});
    }
  }
}

template <typename T>
Oracle scores_oracle(const Inputs<T>& in) {
  const IndexSizes& n = in.n;
  Oracle want(n.batch * n.queries * n.keys, true);
  for_each_place(n, [&](const Place& at) {
    const size_t i = (at.b * n.queries + at.s) * n.keys + at.t;
    for (int64_t head = 0; head < n.heads; ++head) {
      const auto [a, size] = in.product(at, head);
      want.value[i] += in.weight(at, head) * std::max(a, 0.0);
      want.scale[i] += std::abs(in.weight(at, head)) * size;
    }
    if (!in.visible(at)) want.value[i] = -std::numeric_limits<double>::infinity();
  });
  return want;
}

template <typename T>
std::string check_forward(const Inputs<T>& in) {
  auto scores = unwritten<float>(in.n.batch * in.n.queries * in.n.keys);
  launch_index_scores<T>({.q = in.q.data(),
                          .k = in.k.data(),
                          .weights = in.weights.data(),
                          .mask = in.mask_data(),
                          .scores = scores.data(),
                          .sizes = in.n,
                          .first_query = in.first_query},
                         nullptr);
  return beyond_limit("index_scores.scores", scores, scores_oracle(in));
}

struct GradientOracle {
  Oracle dq, dk, dweights;
};

/// slope(place): dscores there, 0 where it is not visible or not selected.
template <typename T, typename Slope>
GradientOracle gradient_oracle(const Inputs<T>& in, Slope slope_at) {
  const IndexSizes& n = in.n;
  const int64_t rows = n.batch * n.queries * n.heads;
  GradientOracle want{Oracle(rows * n.dim, true), Oracle(n.batch * n.keys * n.dim, true),
                      Oracle(rows, true)};
  for_each_place(n, [&](const Place& at) {
    const double slope = slope_at(at);
    if (slope == 0) return;
    for (int64_t head = 0; head < n.heads; ++head) {
      const auto [a, size] = in.product(at, head);
      const int64_t row = (at.b * n.queries + at.s) * n.heads + head;
      want.dweights.value[row] += slope * std::max(a, 0.0);
      want.dweights.scale[row] += std::abs(slope) * size;
      if (a <= 0) continue;
      const double through = in.weight(at, head) * slope;
      for (int64_t d = 0; d < n.dim; ++d) {
        const int64_t q_at = row * n.dim + d, k_at = (at.b * n.keys + at.t) * n.dim + d;
        const double from_k = through * optimized::to_float(in.k[k_at]);
        const double from_q = through * optimized::to_float(in.q[q_at]);
        want.dq.value[q_at] += from_k;
        want.dq.scale[q_at] += std::abs(from_k);
        want.dk.value[k_at] += from_q;
        want.dk.scale[k_at] += std::abs(from_q);
      }
    }
  });
  return want;
}

template <typename T>
struct Gradients {
  std::vector<T> dq, dk;
  std::vector<float> dweights;
};

template <typename T>
Gradients<T> run_backward(const Inputs<T>& in, bool sparse) {
  const IndexSizes& n = in.n;
  const int64_t rows = n.batch * n.queries * n.heads, dk_size = n.batch * n.keys * n.dim;
  Gradients<T> got{unwritten<T>(rows * n.dim), unwritten<T>(dk_size), unwritten<float>(rows)};
  auto partial = unwritten<float>(optimized::index_key_splits(n) * dk_size);
  if (optimized::mutant(IndexScoresMutant::atomic_dk)) partial.assign(partial.size(), 0);
  auto dense = unwritten<float>(n.batch * n.queries * n.keys);
  launch_index_scores_backward<T>({.dscores = sparse ? in.sparse.data() : in.dense.data(),
                                   .topk = sparse ? in.topk.data() : nullptr,
                                   .q = in.q.data(),
                                   .k = in.k.data(),
                                   .weights = in.weights.data(),
                                   .mask = sparse ? nullptr : in.mask_data(),
                                   .dq = got.dq.data(),
                                   .dk = got.dk.data(),
                                   .dweights = got.dweights.data(),
                                   .dk_partial = partial.data(),
                                   .dense_dscores = dense.data(),
                                   .sizes = n,
                                   .first_query = sparse ? n.keys : in.first_query,
                                   .topk_width = in.width},
                                  nullptr);
  return got;
}

template <typename T>
std::string compare(const Gradients<T>& got, const GradientOracle& want) {
  return first_fault({beyond_limit("index_scores.dweights", got.dweights, want.dweights),
                      beyond_limit("index_scores.dq", got.dq, want.dq),
                      beyond_limit("index_scores.dk", got.dk, want.dk)});
}

template <typename T>
GradientOracle dense_oracle(const Inputs<T>& in) {
  return gradient_oracle(in, [&](const Place& at) {
    const double slope = in.dense[(at.b * in.n.queries + at.s) * in.n.keys + at.t];
    return in.visible(at) ? slope : 0;
  });
}

template <typename T>
GradientOracle sparse_oracle(const Inputs<T>& in) {
  return gradient_oracle(in, [&](const Place& at) -> double {
    const int64_t row = (at.b * in.n.queries + at.s) * in.width;
    for (int64_t i = row; i < row + in.width; ++i) {
      if (in.topk[i] == at.t) return in.sparse[i];
    }
    return 0;
  });
}

template <typename T>
std::string check_cases(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    const Inputs<T> in(c);
    const GradientOracle dense = dense_oracle(in), sparse = sparse_oracle(in);
    const std::string fault = on_every_schedule([&] {
      return first_fault({check_forward(in), compare(run_backward(in, false), dense),
                          compare(run_backward(in, true), sparse)});
    });
    if (!fault.empty()) {
      return std::to_string(c.sizes.queries) + " queries, " + std::to_string(c.sizes.keys) +
             " keys: " + fault;
    }
  }
  return "";
}

/// The gradients must not depend on the order of blocks and threads.
std::string check_determinism() {
  const Inputs<float> in({{1, 40, 70, 5, 12}, 30, 20});
  optimized::simt::set_schedule_seed(0);
  const Gradients<float> first = run_backward(in, false), sparse = run_backward(in, true);
  return on_every_schedule([&] {
    const Gradients<float> again = run_backward(in, false), other = run_backward(in, true);
    const bool same = same_bits(first.dk, again.dk) && same_bits(first.dq, again.dq) &&
                      same_bits(first.dweights, again.dweights) && same_bits(sparse.dk, other.dk) &&
                      same_bits(sparse.dq, other.dq);
    return std::string(same ? "" : "other bits");
  });
}

std::string check_few() {
  const std::string fault =
      first_fault({check_cases<float>(kFewCases), check_cases<bf16>(kFewCases)});
  return fault.empty() ? check_determinism() : fault;
}

TEST(IndexScoresKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_cases<float>(kCases), ""); }
TEST(IndexScoresKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_cases<bf16>(kCases), ""); }
TEST(IndexScoresKernel, GivesTheSameBitsOnEverySchedule) { EXPECT_EQ(check_determinism(), ""); }

TEST(IndexScoresKernel, EveryMutantIsFound) {
  expect_found({IndexScoresMutant::hidden_diagonal, IndexScoresMutant::unmasked,
                IndexScoresMutant::dropped_head, IndexScoresMutant::missing_barrier,
                IndexScoresMutant::ungated, IndexScoresMutant::unweighted_dk,
                IndexScoresMutant::stale_slopes, IndexScoresMutant::dropped_split,
                IndexScoresMutant::lost_first_query, IndexScoresMutant::atomic_dk},
               check_few);
}

}  // namespace
}  // namespace dsv32::suites
