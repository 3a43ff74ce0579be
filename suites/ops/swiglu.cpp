// swiglu through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

const std::vector<std::vector<int64_t>> kShapes = {{},      {1},        {0, 16},  {7},
                                                   {5, 33}, {3, 9, 64}, {2, 2049}};

at::Tensor oracle(const at::Tensor& gate, const at::Tensor& up) {
  return gate * gate.sigmoid() * up;
}

class SwigluOp : public OpTest {};

TEST_P(SwigluOp, MatchesFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const at::Tensor gate = random(shape, dtype, 1, 4), up = random(shape, dtype, 2, 2);
      const at::Tensor want = oracle(wide(gate), wide(up));
      expect_close("swiglu.y", call("swiglu", {gate, up})[0], want, want.abs());
    }
  }
}

TEST_P(SwigluOp, GradientsMatchAutogradOfFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const at::Tensor gate = random(shape, dtype, 1, 4), up = random(shape, dtype, 2, 2);
      const at::Tensor dy = random(shape, dtype, 3);
      at::Tensor gate64 = wide(gate).requires_grad_(), up64 = wide(up).requires_grad_();
      const auto want = torch::autograd::grad({oracle(gate64, up64)}, {gate64, up64}, {wide(dy)});
      const auto got = call("swiglu_backward", {dy, gate, up});
      const at::Tensor s = wide(gate).sigmoid();
      const at::Tensor scale = (wide(dy) * wide(up) * s * (1 + wide(gate).abs() * (1 - s))).abs();
      expect_close("swiglu.dgate", got[0], want[0], scale);
      expect_close("swiglu.dup", got[1], want[1], want[1].abs());
    }
  }
}

TEST_P(SwigluOp, FarGatesAreZeroOrLinear) {
  const at::Tensor gate =
      at::tensor({-1e4, -200.0, 0.0, 200.0, 1e4}).to(GetParam().device, at::kFloat);
  const at::Tensor up = at::full_like(gate, 3);
  const at::Tensor want = at::tensor({0.0, 0.0, 0.0, 600.0, 3e4}, at::kFloat);
  EXPECT_TRUE(at::equal(call("swiglu", {gate, up})[0].cpu(), want));
  const auto gradients = call("swiglu_backward", {at::ones_like(gate), gate, up});
  EXPECT_TRUE(at::equal(gradients[0].cpu(), at::tensor({0.0, 0.0, 1.5, 3.0, 3.0}, at::kFloat)));
}

TEST_P(SwigluOp, TakesInputsThatAreNotContiguous) {
  // Gate and up as the halves of one product, the usual fused layout.
  const at::Tensor both = random({6, 2, 40}, at::kFloat, 1), dy = random({6, 40}, at::kFloat, 2);
  const at::Tensor gate = both.select(1, 0), up = both.select(1, 1);
  const auto want = call("swiglu_backward", {dy, gate.contiguous(), up.contiguous()});
  const auto got = call("swiglu_backward", {strided(dy), gate, up});
  expect_same_bits(got[0], want[0]);
  expect_same_bits(got[1], want[1]);
  expect_same_bits(call("swiglu", {gate, up})[0],
                   call("swiglu", {gate.contiguous(), up.contiguous()})[0]);
}

TEST_P(SwigluOp, GivesTheSameBitsOnEveryRun) {
  const at::Tensor gate = random({70001}, at::kFloat, 1), up = random({70001}, at::kFloat, 2);
  expect_deterministic([&] {
    auto all = call("swiglu_backward", {up, gate, up});
    all.push_back(call("swiglu", {gate, up})[0]);
    return all;
  });
}

TEST_P(SwigluOp, RefusesBadInput) {
  const at::Tensor x = random({2, 8}, at::kFloat, 1);
  expect_refused("swiglu: gate: expected float32 or bfloat16, got Double", "swiglu",
                 {x.to(at::kDouble), x});
  expect_refused("swiglu: up: expected Float as gate, got BFloat16", "swiglu",
                 {x, x.to(at::kBFloat16)});
  expect_refused("swiglu: up: expected shape [2, 8], got [2, 7]", "swiglu", {x, x.narrow(1, 0, 7)});
  expect_refused("swiglu_backward: dy: expected shape [2, 8], got [8]", "swiglu_backward",
                 {x[0], x, x});
}

DSV32_ON_EVERY_BACKEND(SwigluOp);

}  // namespace
}  // namespace dsv32::suites
