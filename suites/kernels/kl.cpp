// The kl kernels in the executor, against float64.

#include "src/optimized/kernels/kl.h"

#include <algorithm>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using optimized::KlMutant;
using optimized::KlSizes;

constexpr float kScale = 0.3f;

struct Case {
  KlSizes sizes;  // places: of the sparse form
  int64_t first_query;
};

// Around a tile (64 heads, 64 places), a step of a product (32) and a chunk of columns (128).
const std::vector<Case> kCases = {{{1, 1, 1, 1, 1, 1}, 0},      {{2, 3, 5, 4, 40, 4}, 2},
                                  {{1, 2, 64, 65, 16, 64}, 62}, {{1, 2, 65, 2, 33, 65}, 63},
                                  {{1, 3, 9, 3, 129, 12}, 0},   {{2, 2, 130, 5, 128, 66}, 128}};
const std::vector<Case> kFewCases = {{{2, 3, 5, 4, 40, 4}, 2}, {{1, 2, 65, 2, 33, 65}, 63}};

template <typename T>
struct Inputs {
  KlSizes n;
  bool sparse;
  int64_t first_query;
  std::vector<T> q, kv;
  std::vector<float> lse, scores;
  std::vector<char> mask;
  std::vector<int32_t> topk;

  Inputs(const Case& c, bool is_sparse)
      : n(c.sizes),
        sparse(is_sparse),
        first_query(c.first_query),
        q(random_values<T>(n.batch * n.queries * n.heads * n.width, 1)),
        kv(random_values<T>(n.batch * n.keys * n.width, 2)),
        scores(random_values<float>(n.batch * n.queries * n.keys, 3, 2)),
        mask(static_cast<size_t>(n.batch * n.keys), 1),
        topk(static_cast<size_t>(n.batch * n.queries * n.places), -1) {
    // In the last batch row the first query of a fresh sequence has no key at all.
    for (int64_t t = 0; t + 1 < n.keys && t < 3; ++t) mask[(n.batch - 1) * n.keys + t] = 0;
    for (int64_t row = 1; row < n.batch * n.queries; ++row) {
      // Distinct keys in falling order; the last place of every other row stays empty.
      for (int64_t i = 0; i < std::min(n.places, n.keys) - row % 2; ++i) {
        topk[row * n.places + i] = static_cast<int32_t>(n.keys - 1 - i);
      }
    }
    if (!sparse) n.places = n.keys;
    for (int64_t row = 0; row < n.batch * n.queries; ++row) {
      for (int64_t head = 0; head < n.heads; ++head) lse.push_back(log_sum_exp(row, head));
    }
  }

  /// -1: none.
  int64_t key(int64_t row, int64_t place) const {
    if (sparse) return topk[row * n.places + place];
    const bool kept = mask[row / n.queries * n.keys + place] != 0;
    return place <= first_query + row % n.queries && kept ? place : -1;
  }
  /// Scaled logit and the sum of its terms' magnitudes.
  std::pair<double, double> logit(int64_t row, int64_t head, int64_t key) const {
    double sum = 0, size = 0;
    for (int64_t d = 0; d < n.width; ++d) {
      const double term =
          static_cast<double>(optimized::to_float(q[(row * n.heads + head) * n.width + d])) *
          optimized::to_float(kv[(row / n.queries * n.keys + key) * n.width + d]);
      sum += kScale * term;
      size += kScale * std::abs(term);
    }
    return {sum, size};
  }
  float log_sum_exp(int64_t row, int64_t head) const {
    double sum = 0;
    for (int64_t place = 0; place < n.places; ++place) {
      if (key(row, place) >= 0) sum += std::exp(logit(row, head, key(row, place)).first);
    }
    return static_cast<float>(std::log(sum));
  }
};

struct Wanted {
  Oracle target, student, rows, dscores;
};

/// Errors are measured against a value times the size of the exponent that it comes from.
template <typename T>
Wanted oracle(const Inputs<T>& in) {
  const KlSizes& n = in.n;
  const int64_t rows = n.batch * n.queries, count = rows * n.places;
  Wanted want{Oracle(count, true), Oracle(count, true), Oracle(rows, true), Oracle(count, true)};
  for (int64_t row = 0; row < rows; ++row) {
    double total = 0, exponentials = 0, size = 1;
    const auto score = [&](int64_t key) { return in.scores[row * n.keys + key]; };
    for (int64_t i = row * n.places; i < (row + 1) * n.places; ++i) {
      const int64_t key = in.key(row, i - row * n.places);
      if (key < 0) continue;
      for (int64_t head = 0; head < n.heads; ++head) {
        const auto [logit, magnitude] = in.logit(row, head, key);
        const double lse = in.lse[row * n.heads + head];
        want.target.value[i] += std::exp(logit - lse);
        size = std::max({size, magnitude, std::abs(lse), std::abs(double{score(key)})});
      }
      total += want.target.value[i];
      exponentials += std::exp(double{score(key)});
    }
    for (int64_t i = row * n.places; i < (row + 1) * n.places; ++i) {
      const int64_t key = in.key(row, i - row * n.places);
      if (key < 0) continue;
      const double log_student = score(key) - std::log(exponentials);
      const double target = want.target.value[i] / total, student = std::exp(log_student);
      want.target.value[i] = target;
      want.target.scale[i] = target * size;
      want.student.value[i] = student;
      want.student.scale[i] = student * size;
      want.dscores.value[i] = student - target;
      want.dscores.scale[i] = (student + target) * size;
      if (target == 0) continue;
      want.rows.value[row] += target * (std::log(target) - log_student);
      want.rows.scale[row] += target * (std::abs(std::log(target)) + std::abs(log_student)) * size;
    }
    want.rows.scale[row] += size;
  }
  return want;
}

struct Results {
  std::vector<float> target, student, rows, dscores;
};

template <typename T>
Results run(const Inputs<T>& in) {
  const int64_t rows = in.n.batch * in.n.queries, count = rows * in.n.places;
  Results got{unwritten<float>(count), unwritten<float>(count), unwritten<float>(rows),
              unwritten<float>(count)};
  launch_kl<T>({.q = in.q.data(),
                .kv = in.kv.data(),
                .lse = in.lse.data(),
                .scores = in.scores.data(),
                .topk = in.sparse ? in.topk.data() : nullptr,
                .mask = in.sparse ? nullptr : reinterpret_cast<const bool*>(in.mask.data()),
                .target = got.target.data(),
                .student = got.student.data(),
                .rows = got.rows.data(),
                .dscores = got.dscores.data(),
                .sizes = in.n,
                .first_query = in.first_query,
                .scale = kScale},
               nullptr);
  return got;
}

std::string compare(const Results& got, const Wanted& want) {
  return first_fault({beyond_limit("kl.target", got.target, want.target),
                      beyond_limit("kl.student", got.student, want.student),
                      beyond_limit("kl.rows", got.rows, want.rows),
                      beyond_limit("kl.dscores", got.dscores, want.dscores)});
}

template <typename T>
std::string check_cases(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    const Inputs<T> sparse(c, true), dense(c, false);
    const Wanted want_sparse = oracle(sparse), want_dense = oracle(dense);
    const std::string fault = on_every_schedule([&] {
      return first_fault({compare(run(sparse), want_sparse), compare(run(dense), want_dense)});
    });
    if (!fault.empty()) {
      return std::to_string(c.sizes.keys) + " keys, " + std::to_string(c.sizes.heads) +
             " heads: " + fault;
    }
  }
  return "";
}

std::string check_few() {
  return first_fault({check_cases<float>(kFewCases), check_cases<bf16>(kFewCases)});
}

TEST(KlKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_cases<float>(kCases), ""); }
TEST(KlKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_cases<bf16>(kCases), ""); }

TEST(KlKernel, GivesTheSameBitsOnEverySchedule) {
  const Inputs<float> in(kCases[2], false);
  optimized::simt::set_schedule_seed(0);
  const Results first = run(in);
  EXPECT_EQ(on_every_schedule([&] {
              const Results again = run(in);
              const bool same = same_bits(first.target, again.target) &&
                                same_bits(first.rows, again.rows) &&
                                same_bits(first.dscores, again.dscores);
              return std::string(same ? "" : "other bits");
            }),
            "");
}

TEST(KlKernel, EveryMutantIsFound) {
  expect_found({KlMutant::unscaled, KlMutant::dropped_head, KlMutant::dropped_step,
                KlMutant::missing_barrier, KlMutant::not_normalised, KlMutant::hidden_diagonal,
                KlMutant::shifted_student},
               check_few);
}

}  // namespace
}  // namespace dsv32::suites
