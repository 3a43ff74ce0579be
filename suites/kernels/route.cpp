// The routing kernels in the executor, against float64.

#include "src/optimized/kernels/route.h"

#include <algorithm>
#include <numeric>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using namespace optimized;

constexpr float kScale = 2.5f;

struct Shape {
  int64_t tokens, experts, groups, kept_groups, k;
  bool normalise = true;
};

// Around a warp of experts and of tokens per block; every group kept; groups of one expert; the
// released size.
const Shape kShapes[] = {{1, 1, 1, 1, 1},  {3, 4, 2, 1, 2},   {4, 31, 1, 1, 8},
                         {5, 32, 8, 4, 8}, {4, 33, 3, 2, 22}, {2, 32, 32, 5, 3, false},
                         {3, 64, 4, 4, 4}, {5, 256, 8, 4, 8}, {1, 1024, 32, 1, 32},
                         {9, 16, 4, 2, 4}};

struct Inputs {
  Shape shape;
  std::vector<float> logits, bias, dweights;

  explicit Inputs(const Shape& s)
      : shape(s),
        logits(random_values<float>(s.tokens * s.experts, 1, 2)),
        bias(random_values<float>(s.experts, 2, 0.3)),
        dweights(random_values<float>(s.tokens * s.k, 3)) {}

  /// Few distinct values, all exact: ties between experts and between groups.
  static Inputs with_ties(const Shape& s) {
    Inputs in(s);
    std::fill(in.logits.begin(), in.logits.end(), 0.0f);
    for (float& b : in.bias) b = b > 0 ? 0.25f : -0.25f;
    return in;
  }
};

/// The first `count` of `ids` under (score descending, id ascending), ascending.
std::vector<int> first_of(std::vector<int> ids, int64_t count, const std::vector<double>& score) {
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return score[a] > score[b]; });
  ids.resize(count);
  std::sort(ids.begin(), ids.end());
  return ids;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

std::vector<int32_t> chosen_oracle(const Inputs& in) {
  const Shape& s = in.shape;
  const int64_t size = s.experts / s.groups;
  std::vector<int32_t> chosen;
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::vector<double> choice, group_score;
    for (int64_t e = 0; e < s.experts; ++e) {
      choice.push_back(sigmoid(in.logits[t * s.experts + e]) + in.bias[e]);
    }
    for (int64_t g = 0; g < s.groups; ++g) {
      std::vector<double> own(choice.begin() + g * size, choice.begin() + (g + 1) * size);
      std::sort(own.rbegin(), own.rend());
      group_score.push_back(size == 1 ? own[0] : own[0] + own[1]);
    }
    std::vector<int> groups(s.groups), open;
    std::iota(groups.begin(), groups.end(), 0);
    for (const int g : first_of(groups, s.kept_groups, group_score)) {
      for (int64_t i = 0; i < size; ++i) open.push_back(static_cast<int>(g * size + i));
    }
    for (const int e : first_of(open, s.k, choice)) chosen.push_back(e);
  }
  return chosen;
}

/// Weights of `chosen`, [tokens, k].
Oracle weights_oracle(const Inputs& in, const std::vector<int32_t>& chosen) {
  const Shape& s = in.shape;
  Oracle want(s.tokens * s.k);
  for (int64_t t = 0; t < s.tokens; ++t) {
    double total = 1e-20;
    for (int64_t i = 0; i < s.k; ++i) {
      total += sigmoid(in.logits[t * s.experts + chosen[t * s.k + i]]);
    }
    for (int64_t i = 0; i < s.k; ++i) {
      const double score = sigmoid(in.logits[t * s.experts + chosen[t * s.k + i]]);
      want.value[t * s.k + i] = kScale * score / (s.normalise ? total : 1);
    }
  }
  return want;
}

Oracle dlogits_oracle(const Inputs& in, const std::vector<int32_t>& chosen) {
  const Shape& s = in.shape;
  Oracle want(s.tokens * s.experts, true);
  for (int64_t t = 0; t < s.tokens; ++t) {
    double total = 1e-20, shared = 0, size = 0;
    const auto score = [&](int64_t i) {
      return sigmoid(in.logits[t * s.experts + chosen[t * s.k + i]]);
    };
    for (int64_t i = 0; i < s.k; ++i) total += score(i);
    if (!s.normalise) total = 1;
    for (int64_t i = 0; s.normalise && i < s.k; ++i) {
      shared += in.dweights[t * s.k + i] * score(i) / total;
      size += std::abs(in.dweights[t * s.k + i]) * score(i) / total;
    }
    for (int64_t i = 0; i < s.k; ++i) {
      const double slope = kScale / total * score(i) * (1 - score(i));
      const double dweight = in.dweights[t * s.k + i];
      const int64_t at = t * s.experts + chosen[t * s.k + i];
      want.value[at] = slope * (dweight - shared);
      // 1 - s cancels near 1: its rounding is one of s, not of 1 - s.
      want.scale[at] = (std::abs(dweight) + size) * slope / (1 - score(i));
    }
  }
  return want;
}

std::string check_route(const Inputs& in) {
  const Shape& s = in.shape;
  std::vector<int32_t> chosen(s.tokens * s.k, -7);
  auto weights = unwritten<float>(s.tokens * s.k);
  launch_route({.logits = in.logits.data(),
                .bias = in.bias.data(),
                .chosen = chosen.data(),
                .weights = weights.data(),
                .tokens = s.tokens,
                .experts = s.experts,
                .groups = s.groups,
                .kept_groups = s.kept_groups,
                .k = s.k,
                .scale = kScale,
                .normalise = s.normalise},
               nullptr);
  if (chosen != chosen_oracle(in)) return "other experts";
  return beyond_limit("route.weights", weights, weights_oracle(in, chosen));
}

/// Experts that no router would choose: those from the token's own index on.
std::vector<int32_t> forced_experts(const Shape& s) {
  std::vector<int32_t> forced;
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t i = 0; i < s.k; ++i) forced.push_back(static_cast<int32_t>((t + i) % s.experts));
  }
  return forced;
}

std::string check_forced(const Inputs& in) {
  const Shape& s = in.shape;
  const std::vector<int32_t> chosen = forced_experts(s);
  auto weights = unwritten<float>(s.tokens * s.k);
  launch_routing_weights({.logits = in.logits.data(),
                          .chosen = chosen.data(),
                          .weights = weights.data(),
                          .tokens = s.tokens,
                          .experts = s.experts,
                          .k = s.k,
                          .scale = kScale,
                          .normalise = s.normalise},
                         nullptr);
  auto dlogits = unwritten<float>(s.tokens * s.experts);
  launch_route_backward({.dweights = in.dweights.data(),
                         .logits = in.logits.data(),
                         .chosen = chosen.data(),
                         .dlogits = dlogits.data(),
                         .tokens = s.tokens,
                         .experts = s.experts,
                         .k = s.k,
                         .scale = kScale,
                         .normalise = s.normalise},
                        nullptr);
  return first_fault({beyond_limit("route.weights", weights, weights_oracle(in, chosen)),
                      beyond_limit("route.dlogits", dlogits, dlogits_oracle(in, chosen))});
}

std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const Inputs in(shape), ties = Inputs::with_ties(shape);
    const std::string fault = on_every_schedule([&] {
      return first_fault({check_route(in), check_route(ties), check_forced(in)});
    });
    if (!fault.empty()) return std::to_string(shape.experts) + " experts: " + fault;
  }
  return "";
}

TEST(RouteKernel, MatchesFloat64) { EXPECT_EQ(check_shapes(), ""); }

TEST(RouteKernel, NanIsChosenLast) {
  Inputs in({2, 32, 1, 1, 31});
  in.logits[5] = in.logits[32 + 31] = std::numeric_limits<float>::quiet_NaN();
  std::vector<int32_t> chosen(62), want(62);
  for (int i = 0; i < 31; ++i) want[i] = i < 5 ? i : i + 1;
  std::iota(want.begin() + 31, want.end(), 0);
  std::vector<float> weights(62);
  launch_route({.logits = in.logits.data(),
                .bias = in.bias.data(),
                .chosen = chosen.data(),
                .weights = weights.data(),
                .tokens = 2,
                .experts = 32,
                .groups = 1,
                .kept_groups = 1,
                .k = 31,
                .scale = kScale,
                .normalise = true},
               nullptr);
  EXPECT_EQ(chosen, want);
}

TEST(RouteKernel, LeavesOutWhatIsNoExpert) {
  const Inputs in({1, 4, 1, 1, 2});
  const std::vector<int32_t> chosen = {4, -1};
  std::vector<float> weights = {7, 7}, dlogits(4, 7);
  launch_routing_weights({.logits = in.logits.data(),
                          .chosen = chosen.data(),
                          .weights = weights.data(),
                          .tokens = 1,
                          .experts = 4,
                          .k = 2,
                          .scale = kScale,
                          .normalise = false},
                         nullptr);
  launch_route_backward({.dweights = in.dweights.data(),
                         .logits = in.logits.data(),
                         .chosen = chosen.data(),
                         .dlogits = dlogits.data(),
                         .tokens = 1,
                         .experts = 4,
                         .k = 2,
                         .scale = kScale,
                         .normalise = true},
                        nullptr);
  EXPECT_EQ(weights, std::vector<float>(2, 0.0f));
  EXPECT_EQ(dlogits, std::vector<float>(4, 0.0f));
}

TEST(RouteKernel, EveryMutantIsFound) {
  expect_found({RouteMutant::wrong_tail, RouteMutant::higher_index, RouteMutant::best_of_group,
                RouteMutant::biased_weights, RouteMutant::scale_twice, RouteMutant::stale_gradient,
                RouteMutant::uncoupled},
               check_shapes);
}

}  // namespace
}  // namespace dsv32::suites
