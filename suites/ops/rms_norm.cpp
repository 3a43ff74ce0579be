// rms_norm through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

constexpr double kEps = 1e-6;
const std::vector<std::vector<int64_t>> kShapes = {{1},     {7},     {0, 16},    {1, 1},
                                                   {5, 33}, {40, 8}, {3, 9, 64}, {2, 257}};

at::Tensor oracle(const at::Tensor& x, const at::Tensor& weight) {
  return x * (x.square().mean(-1, /*keepdim=*/true) + kEps).rsqrt() * weight;
}

/// Sum of the magnitudes of the terms of dx, without dsum.
at::Tensor dx_scale(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight) {
  const at::Tensor rstd = (x.square().mean(-1, /*keepdim=*/true) + kEps).rsqrt();
  const at::Tensor slope = (dy * weight).abs(), normed = (x * rstd).abs();
  return rstd * (slope + normed * (slope * normed).mean(-1, /*keepdim=*/true));
}

class RmsNormOp : public OpTest {
 protected:
  at::Tensor weight(const at::Tensor& x) const {
    return random({x.size(-1)}, x.scalar_type(), 3, 0.5, 1);
  }
};

TEST_P(RmsNormOp, MatchesFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const at::Tensor x = random(shape, dtype, 1, 3), w = weight(x);
      const auto got = call("rms_norm", {x, w, kEps});
      expect_close("rms_norm.y", got[0], oracle(wide(x), wide(w)));
      expect_close("rms_norm.rstd", got[1], (wide(x).square().mean(-1) + kEps).rsqrt());
    }
  }
}

TEST_P(RmsNormOp, NormsTheUnroundedResidualSum) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const at::Tensor x = random(shape, dtype, 1, 3), residual = random(shape, dtype, 2);
      const at::Tensor w = weight(x), sum = wide(x) + wide(residual);
      const auto got = call("add_rms_norm", {x, residual, w, kEps});
      expect_close("rms_norm.y", got[0], oracle(sum, wide(w)));
      expect_close("rms_norm.sum", got[1], sum);
      expect_close("rms_norm.rstd", got[2], (sum.square().mean(-1) + kEps).rsqrt());
    }
  }
}

TEST_P(RmsNormOp, GradientsMatchAutogradOfFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const at::Tensor x = random(shape, dtype, 1, 3), w = weight(x);
      const at::Tensor dy = random(shape, dtype, 4), dsum = random(shape, dtype, 5);
      const at::Tensor rstd = call("rms_norm", {x, w, kEps})[1];

      at::Tensor x64 = wide(x).requires_grad_(), w64 = wide(w).requires_grad_();
      const auto want = torch::autograd::grad({oracle(x64, w64)}, {x64, w64}, {wide(dy)});
      const auto plain = call("rms_norm_backward", {dy, x, w, rstd, c10::IValue()});
      const at::Tensor scale = dx_scale(wide(dy), wide(x), wide(w));
      expect_close("rms_norm.dx", plain[0], want[0], scale);
      expect_close("rms_norm.dweight", plain[1], want[1]);
      const auto fused = call("rms_norm_backward", {dy, x, w, rstd, dsum});
      expect_close("rms_norm.dx", fused[0], want[0] + wide(dsum), scale + wide(dsum).abs());
      expect_same_bits(fused[1], plain[1]);
    }
  }
}

TEST_P(RmsNormOp, TakesInputsThatAreNotContiguous) {
  const at::Tensor x = random({3, 5, 24}, at::kFloat, 1), w = weight(x);
  const at::Tensor dy = random({3, 5, 24}, at::kFloat, 2);
  const auto dense = call("rms_norm", {x, w, kEps});
  const auto loose = call("rms_norm", {strided(x), strided(w), kEps});
  expect_same_bits(loose[0], dense[0]);
  const auto want = call("rms_norm_backward", {dy, x, w, dense[1], x});
  const auto got = call("rms_norm_backward",
                        {strided(dy), strided(x), strided(w), strided(dense[1]), strided(x)});
  expect_same_bits(got[0], want[0]);
  expect_same_bits(got[1], want[1]);
}

TEST_P(RmsNormOp, GivesTheSameBitsOnEveryRun) {
  const at::Tensor x = random({700, 65}, at::kFloat, 1), w = weight(x);
  expect_deterministic([&] {
    const auto forward = call("add_rms_norm", {x, x, w, kEps});
    const auto backward = call("rms_norm_backward", {x, x, w, forward[2], x});
    return std::vector<at::Tensor>{forward[0], forward[1], forward[2], backward[0], backward[1]};
  });
}

TEST_P(RmsNormOp, RefusesBadInput) {
  const at::Tensor x = random({2, 8}, at::kFloat, 1), w = weight(x);
  const at::Tensor rstd = random({2}, at::kFloat, 2);
  expect_refused("rms_norm: x: expected float32 or bfloat16, got Double", "rms_norm",
                 {x.to(at::kDouble), w.to(at::kDouble), kEps});
  expect_refused("rms_norm: x: expected 1 axes or more, got shape []", "rms_norm",
                 {x[0][0], w, kEps});
  expect_refused("rms_norm: x: expected 1 element or more along the last axis, got shape [2, 0]",
                 "rms_norm", {x.narrow(1, 0, 0), w.narrow(0, 0, 0), kEps});
  expect_refused("rms_norm: weight: expected Float as x, got BFloat16", "rms_norm",
                 {x, w.to(at::kBFloat16), kEps});
  expect_refused("rms_norm: weight: expected shape [8], got [1, 8]", "rms_norm",
                 {x, w.unsqueeze(0), kEps});
  expect_refused("add_rms_norm: residual: expected shape [2, 8], got [8]", "add_rms_norm",
                 {x, w, w, kEps});
  expect_refused("rms_norm_backward: dy: expected shape [2, 8], got [1, 8]", "rms_norm_backward",
                 {x.narrow(0, 0, 1), x, w, rstd, c10::IValue()});
  expect_refused("rms_norm_backward: rstd: expected Float, got Double", "rms_norm_backward",
                 {x, x, w, rstd.to(at::kDouble), c10::IValue()});
  expect_refused("rms_norm_backward: dsum: expected shape [2, 8], got [2]", "rms_norm_backward",
                 {x, x, w, rstd, rstd});
  const at::Tensor broad = random({1, 32769}, at::kFloat, 1);
  expect_refused("rms_norm_backward: x: expected at most 32768 elements along axis -1",
                 "rms_norm_backward", {broad, broad, broad[0], rstd, c10::IValue()});
}

DSV32_ON_EVERY_BACKEND(RmsNormOp);

}  // namespace
}  // namespace dsv32::suites
