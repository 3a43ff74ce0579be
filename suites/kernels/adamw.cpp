// The optimizer's kernels in the executor, against float64.

#include "src/optimized/kernels/adamw.h"

#include <algorithm>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using namespace optimized;

// Around a block (256) and a chunk (8192); several tensors in one launch.
const std::vector<std::vector<int64_t>> kLists = {{1}, {255, 256, 257}, {8191, 3, 8193}, {8192, 1}};
constexpr float kClip = 0.75f;
constexpr double kLr = 1e-2, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kDecay = 0.1;
constexpr int kStep = 3;

AdamwFactors factors() {
  return {.decay = static_cast<float>(1 - kLr * kDecay),
          .weight_decay = kDecay,
          .beta1_rest = static_cast<float>(1 - kBeta1),
          .beta2 = kBeta2,
          .beta2_rest = static_cast<float>(1 - kBeta2),
          .step_size = static_cast<float>(kLr / (1 - std::pow(kBeta1, kStep))),
          .root = static_cast<float>(std::sqrt(1 - std::pow(kBeta2, kStep))),
          .eps = kEps};
}

/// All tensors one after the other.
template <typename G>
struct Values {
  std::vector<int64_t> counts;
  std::vector<G> gradient;
  std::vector<float> parameter, exp_avg, exp_avg_sq;

  explicit Values(const std::vector<int64_t>& list) : counts(list) {
    int64_t total = 0;
    for (const int64_t count : list) total += count;
    gradient = random_values<G>(total, 1);
    parameter = random_values<float>(total, 2);
    exp_avg = random_values<float>(total, 3, 0.1);
    exp_avg_sq = random_values<float>(total, 4, 0.1, 1);
    for (float& value : exp_avg_sq) value = std::abs(value);
  }

  /// row(start, count, first_chunk) of every tensor; `chunks` gets their number.
  template <typename Row>
  auto table(int64_t& chunks, Row row) const {
    std::vector<decltype(row(0, 0, 0))> rows;
    int64_t start = 0;
    chunks = 0;
    for (const int64_t count : counts) {
      rows.push_back(row(start, count, chunks));
      start += count;
      chunks += adamw_chunks(count);
    }
    return rows;
  }
};

template <typename G>
Values<G> step(Values<G> v) {
  int64_t chunks = 0;
  const auto tensors = v.table(chunks, [&](int64_t start, int64_t count, int64_t first) {
    return AdamwTensor<G>{.parameter = v.parameter.data() + start,
                          .gradient = v.gradient.data() + start,
                          .exp_avg = v.exp_avg.data() + start,
                          .exp_avg_sq = v.exp_avg_sq.data() + start,
                          .count = count,
                          .first_chunk = first};
  });
  launch_adamw<G>({.tensors = tensors.data(),
                   .clip_scale = &kClip,
                   .tensor_count = static_cast<int64_t>(tensors.size()),
                   .chunks = chunks,
                   .factors = factors()},
                  nullptr);
  return v;
}

template <typename G>
double norm_of(const Values<G>& v) {
  int64_t chunks = 0;
  const auto tensors = v.table(chunks, [&](int64_t start, int64_t count, int64_t first) {
    return GradNormTensor<G>{
        .gradient = v.gradient.data() + start, .count = count, .first_chunk = first};
  });
  std::vector<double> partial(chunks, std::numeric_limits<double>::quiet_NaN());
  double norm = std::numeric_limits<double>::quiet_NaN();
  launch_grad_norm<G>({.tensors = tensors.data(),
                       .partial = partial.data(),
                       .norm = &norm,
                       .tensor_count = static_cast<int64_t>(tensors.size()),
                       .chunks = chunks},
                      nullptr);
  return norm;
}

struct Want {
  Oracle parameter, exp_avg, exp_avg_sq, norm;
};

template <typename G>
Want oracle(const Values<G>& v) {
  const auto total = static_cast<int64_t>(v.gradient.size());
  Want want{Oracle(total, true), Oracle(total, true), Oracle(total), Oracle(1)};
  const double root = std::sqrt(1 - std::pow(kBeta2, kStep));
  for (int64_t i = 0; i < total; ++i) {
    const double raw = to_float(v.gradient[i]), g = kClip * raw;
    const double first = kBeta1 * v.exp_avg[i] + (1 - kBeta1) * g;
    const double second = kBeta2 * v.exp_avg_sq[i] + (1 - kBeta2) * g * g;
    const double slope = kLr / (1 - std::pow(kBeta1, kStep)) / (std::sqrt(second) / root + kEps);
    want.exp_avg.value[i] = first;
    want.exp_avg.scale[i] = std::abs(v.exp_avg[i]) + std::abs(g);
    want.exp_avg_sq.value[i] = second;
    want.parameter.value[i] = v.parameter[i] * (1 - kLr * kDecay) - slope * first;
    want.parameter.scale[i] = std::abs(v.parameter[i]) + slope * want.exp_avg.scale[i];
    want.norm.value[0] += raw * raw;
  }
  want.norm.value[0] = std::sqrt(want.norm.value[0]);
  return want;
}

template <typename G>
std::string check(const Values<G>& v, const Want& want) {
  const Values<G> got = step(v);
  // The sum is float64; float32 units are what its reader sees.
  const std::vector<float> norm = {static_cast<float>(norm_of(v))};
  return first_fault({beyond_limit("adamw.exp_avg", got.exp_avg, want.exp_avg),
                      beyond_limit("adamw.exp_avg_sq", got.exp_avg_sq, want.exp_avg_sq),
                      beyond_limit("adamw.parameter", got.parameter, want.parameter),
                      beyond_limit("grad_norm", norm, want.norm)});
}

template <typename G>
std::string check_lists() {
  for (const auto& list : kLists) {
    const Values<G> values(list);
    const Want want = oracle(values);
    const std::string fault = on_every_schedule([&] { return check(values, want); });
    if (!fault.empty()) return std::to_string(list[0]) + " elements: " + fault;
  }
  return "";
}

TEST(AdamwKernel, MatchesFloat64) {
  EXPECT_EQ(check_lists<float>(), "");
  EXPECT_EQ(check_lists<bf16>(), "");
}

TEST(AdamwKernel, NormHasTheSameBitsOnEverySchedule) {
  const Values<float> values({20000, 5, 8193});
  simt::set_schedule_seed(0);
  const double first = norm_of(values);
  EXPECT_EQ(
      on_every_schedule([&] { return std::string(norm_of(values) == first ? "" : "other bits"); }),
      "");
}

TEST(AdamwKernel, EveryMutantIsFound) {
  using enum AdamwMutant;
  expect_found({wrong_tail, dropped_chunk, unclipped, coupled_decay, uncorrected, missing_barrier},
               check_lists<float>);
}

}  // namespace
}  // namespace dsv32::suites
