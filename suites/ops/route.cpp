// route, routing_weights and route_backward through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

struct Case {
  int64_t tokens, experts, n_group, topk_group, k;
  bool normalise = true;
};

// Released, small and tiny; no tokens; one expert; groups of one; every expert chosen.
const Case kCases[] = {{5, 256, 8, 4, 8}, {33, 16, 4, 2, 4},       {64, 4, 2, 1, 2},
                       {0, 16, 4, 2, 4},  {1, 1, 1, 1, 1},         {7, 32, 32, 5, 3},
                       {3, 32, 1, 1, 32}, {4, 33, 3, 2, 8, false}, {2, 1024, 32, 32, 32}};
constexpr double kScale = 2.5;

/// Experts [N,k] int64 ascending, by stable sorts (docs/spec.md 1.8).
at::Tensor experts_oracle(const at::Tensor& logits, const at::Tensor& bias, const Case& c) {
  const auto first = [](const at::Tensor& values, int64_t k) {
    return std::get<1>(at::sort(values, /*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, k);
  };
  const at::Tensor grouped =
      (at::sigmoid(logits) + bias).unflatten(-1, {c.n_group, c.experts / c.n_group});
  const at::Tensor best = std::get<0>(grouped.topk(std::min<int64_t>(2, grouped.size(-1)), -1));
  const at::Tensor kept = at::zeros({logits.size(0), c.n_group}, at::kBool)
                              .scatter_(-1, first(best.sum(-1), c.topk_group), true);
  const at::Tensor open =
      grouped.masked_fill(~kept.unsqueeze(-1), -std::numeric_limits<double>::infinity());
  return std::get<0>(first(open.flatten(-2), c.k).sort(-1));
}

at::Tensor weights_oracle(const at::Tensor& logits, const at::Tensor& experts, const Case& c) {
  const at::Tensor scores = at::sigmoid(logits).gather(-1, experts);
  return kScale * (c.normalise ? scores / (scores.sum(-1, true) + 1e-20) : scores);
}

class RouteOp : public OpTest {
 protected:
  std::vector<at::Tensor> route(const at::Tensor& logits, const at::Tensor& bias,
                                const Case& c) const {
    return call("route", {logits, bias, c.n_group, c.topk_group, c.k, c.normalise, kScale});
  }
  at::Tensor logits(const Case& c) const { return random({c.tokens, c.experts}, at::kFloat, 1, 2); }
  at::Tensor bias(const Case& c) const { return random({c.experts}, at::kFloat, 2, 0.3); }
};

TEST_P(RouteOp, ChoosesTheExpertsOfFloat64) {
  for (const Case& c : kCases) {
    const auto got = route(logits(c), bias(c), c);
    const at::Tensor want = experts_oracle(wide(logits(c)), wide(bias(c)), c);
    expect_same_bits(got[0], want.to(at::kInt));
    expect_close("route.weights", got[1], weights_oracle(wide(logits(c)), want, c));
  }
}

TEST_P(RouteOp, TakesTheLowerIndexOnTies) {
  for (const Case& c : kCases) {
    const at::Tensor flat = at::zeros_like(logits(c)), steps = bias(c).sign() * 0.25;
    const at::Tensor want = experts_oracle(wide(flat), wide(steps), c);
    expect_same_bits(route(flat, steps, c)[0], want.to(at::kInt));
  }
}

TEST_P(RouteOp, WeighsForcedExpertsAsItsOwn) {
  for (const Case& c : kCases) {
    const auto own = route(logits(c), bias(c), c);
    const auto again = call("routing_weights", {logits(c), own[0], c.normalise, kScale});
    expect_same_bits(again[0], own[1]);
    const at::Tensor forced = own[0].flip(-1).contiguous();
    const auto got = call("routing_weights", {logits(c), forced, c.normalise, kScale});
    expect_close("route.weights", got[0],
                 weights_oracle(wide(logits(c)), forced.cpu().to(at::kLong), c));
  }
}

TEST_P(RouteOp, GradientMatchesAutogradOfFloat64) {
  for (const Case& c : kCases) {
    const at::Tensor experts = route(logits(c), bias(c), c)[0];
    const at::Tensor dweights = random({c.tokens, c.k}, at::kFloat, 3);
    const at::Tensor x = wide(logits(c)).requires_grad_();
    const at::Tensor chosen = experts.cpu().to(at::kLong);
    const auto want =
        torch::autograd::grad({weights_oracle(x, chosen, c)}, {x}, {wide(dweights)})[0];
    const auto got = call("route_backward", {dweights, logits(c), experts, c.normalise, kScale})[0];
    const at::Tensor score = at::sigmoid(x.detach()).gather(-1, chosen);
    const at::Tensor total = c.normalise ? score.sum(-1, true) : at::ones({}, at::kDouble);
    const at::Tensor size =
        (wide(dweights).abs() + (wide(dweights) * score).abs().sum(-1, true) / total) * kScale *
        score / total;
    expect_close("route.dlogits", got, want, at::zeros_like(want).scatter_(-1, chosen, size));
    EXPECT_EQ((got != 0).sum().item<int64_t>(), (want != 0).sum().item<int64_t>());
  }
}

TEST_P(RouteOp, TakesInputsThatAreNotContiguous) {
  const Case c = kCases[1];
  const auto dense = route(logits(c), bias(c), c);
  const auto loose = route(strided(logits(c)), strided(bias(c)), c);
  expect_same_bits(loose[0], dense[0]);
  expect_same_bits(loose[1], dense[1]);
  const auto want = call("route_backward", {dense[1], logits(c), dense[0], true, kScale});
  const auto got = call("route_backward",
                        {strided(dense[1]), strided(logits(c)), strided(dense[0]), true, kScale});
  expect_same_bits(got[0], want[0]);
}

TEST_P(RouteOp, GivesTheSameBitsOnEveryRun) {
  const Case c{700, 64, 8, 4, 8};
  expect_deterministic([&] {
    auto results = route(logits(c), bias(c), c);
    results.push_back(call("route_backward", {results[1], logits(c), results[0], true, kScale})[0]);
    return results;
  });
}

TEST_P(RouteOp, RefusesBadInput) {
  const Case c = kCases[1];
  const at::Tensor x = logits(c), b = bias(c);
  const auto refused = [&](const std::string& text, const at::Tensor& l, const at::Tensor& bias,
                           int64_t n_group, int64_t topk_group, int64_t k) {
    expect_refused(text, "route", {l, bias, n_group, topk_group, k, true, kScale});
  };
  refused("route: logits: expected Float, got Double", x.to(at::kDouble), b, 4, 2, 4);
  refused("route: logits: expected 2 axes, got shape [16]", x[0], b, 4, 2, 4);
  refused("route: bias: expected shape [16], got [15]", x, b.narrow(0, 0, 15), 4, 2, 4);
  refused("route: n_group: expected a divisor of 16 experts, got 5", x, b, 5, 2, 4);
  refused("route: n_group: expected 1 to 32, got 0", x, b, 0, 2, 4);
  refused("route: topk_group: expected 1 to 4, got 5", x, b, 4, 5, 4);
  refused("route: k: expected 1 to 8, got 9", x, b, 4, 2, 9);
  const at::Tensor experts = route(x, b, c)[0];
  expect_refused("routing_weights: experts: expected Int, got Long", "routing_weights",
                 {x, experts.to(at::kLong), true, kScale});
  expect_refused("routing_weights: experts: expected shape [33, 4], got [32, 4]", "routing_weights",
                 {x, experts.narrow(0, 0, 32), true, kScale});
  expect_refused("route_backward: dweights: expected shape [33, 4], got [33, 16]", "route_backward",
                 {x, x, experts, true, kScale});
  if (!x.is_cpu()) return;
  expect_refused("routing_weights: experts: expected 0 to 15, got 16", "routing_weights",
                 {x, experts + 16 - experts, true, kScale});
  expect_refused("route_backward: experts: expected 0 to 15, got -1", "route_backward",
                 {experts.to(at::kFloat), x, experts * 0 - 1, true, kScale});
}

DSV32_ON_EVERY_BACKEND(RouteOp);

}  // namespace
}  // namespace dsv32::suites
