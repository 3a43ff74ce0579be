// layer_norm through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

constexpr double kEps = 1e-6;
const std::vector<std::vector<int64_t>> kShapes = {{7},     {0, 16},    {1, 2},  {5, 33},
                                                   {40, 8}, {3, 9, 64}, {2, 257}};

at::Tensor deviation(const at::Tensor& x) { return x - x.mean(-1, /*keepdim=*/true); }

at::Tensor normed(const at::Tensor& x) {
  const at::Tensor centred = deviation(x);
  return centred * (centred.square().mean(-1, /*keepdim=*/true) + kEps).rsqrt();
}

class LayerNormOp : public OpTest {
 protected:
  struct Inputs {
    at::Tensor x, weight, bias, dy;
  };
  Inputs inputs(at::IntArrayRef shape, at::ScalarType dtype) const {
    return {random(shape, dtype, 1, 3, 1), random({shape.back()}, dtype, 2, 0.5, 1),
            random({shape.back()}, dtype, 3), random(shape, dtype, 4)};
  }
};

TEST_P(LayerNormOp, MatchesFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const auto [x, weight, bias, dy] = inputs(shape, dtype);
      const auto got = call("layer_norm", {x, weight, bias, kEps});
      const at::Tensor terms = normed(wide(x)) * wide(weight);
      const at::Tensor spread = deviation(wide(x)).square().mean(-1, /*keepdim=*/true).sqrt();
      const at::Tensor mean_size = wide(x).abs().mean(-1, /*keepdim=*/true) / spread;
      expect_close("layer_norm.y", got[0], terms + wide(bias),
                   terms.abs() + mean_size * wide(weight).abs() + wide(bias).abs());
      expect_close("layer_norm.mean", got[1], wide(x).mean(-1), wide(x).abs().mean(-1));
      expect_close("layer_norm.rstd", got[2], (spread.square() + kEps).rsqrt().squeeze(-1));
    }
  }
}

TEST_P(LayerNormOp, ARowOfSmallVarianceLosesNothing) {
  const at::Tensor x = random({4, 128}, at::kFloat, 1, 1e-3, 8);
  const at::Tensor one = at::ones({128}, x.options()), zero = at::zeros({128}, x.options());
  const auto got = call("layer_norm", {x, one, zero, kEps});
  const at::Tensor spread = (deviation(wide(x)).square().mean(-1, /*keepdim=*/true) + kEps).sqrt();
  expect_close("layer_norm.y", got[0], normed(wide(x)), wide(x).abs() / spread);
}

TEST_P(LayerNormOp, GradientsMatchAutogradOfFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const auto [x, weight, bias, dy] = inputs(shape, dtype);
      const auto forward = call("layer_norm", {x, weight, bias, kEps});
      const auto got = call("layer_norm_backward", {dy, x, weight, forward[1], forward[2]});
      at::Tensor x64 = wide(x).requires_grad_(), weight64 = wide(weight).requires_grad_();
      at::Tensor bias64 = wide(bias).requires_grad_();
      const auto want = torch::autograd::grad({normed(x64) * weight64 + bias64},
                                              {x64, weight64, bias64}, {wide(dy)});
      const at::Tensor slope = (wide(dy) * wide(weight)).abs(), size = normed(wide(x)).abs();
      const auto rstd = wide(forward[2]).unsqueeze(-1);
      const at::Tensor mean_size = wide(x).abs().mean(-1, /*keepdim=*/true) * rstd;
      const at::Tensor dx_scale =
          rstd * (slope + slope.mean(-1, /*keepdim=*/true) +
                  (size + mean_size) * (slope * (size + mean_size)).mean(-1, /*keepdim=*/true));
      expect_close("layer_norm.dx", got[0], want[0], dx_scale);
      const auto rows = [&](const at::Tensor& t) { return t.reshape({-1, x.size(-1)}).sum(0); };
      expect_close("layer_norm.dweight", got[1], want[1],
                   rows(wide(dy).abs() * (size + mean_size)));
      expect_close("layer_norm.dbias", got[2], want[2], rows(wide(dy).abs()));
    }
  }
}

TEST_P(LayerNormOp, TakesInputsThatAreNotContiguous) {
  const auto [x, weight, bias, dy] = inputs({3, 5, 24}, at::kFloat);
  const auto dense = call("layer_norm", {x, weight, bias, kEps});
  const auto loose = call("layer_norm", {strided(x), strided(weight), strided(bias), kEps});
  for (int i = 0; i < 3; ++i) expect_same_bits(loose[i], dense[i]);
  const auto want = call("layer_norm_backward", {dy, x, weight, dense[1], dense[2]});
  const auto got = call("layer_norm_backward", {strided(dy), strided(x), strided(weight),
                                                strided(dense[1]), strided(dense[2])});
  for (int i = 0; i < 3; ++i) expect_same_bits(got[i], want[i]);
}

TEST_P(LayerNormOp, GivesTheSameBitsOnEveryRun) {
  const auto [x, weight, bias, dy] = inputs({700, 65}, at::kFloat);
  expect_deterministic([&, x = x, weight = weight, bias = bias, dy = dy] {
    auto all = call("layer_norm", {x, weight, bias, kEps});
    for (const at::Tensor& t : call("layer_norm_backward", {dy, x, weight, all[1], all[2]})) {
      all.push_back(t);
    }
    return all;
  });
}

TEST_P(LayerNormOp, RefusesBadInput) {
  const auto [x, weight, bias, dy] = inputs({2, 8}, at::kFloat);
  const at::Tensor row = random({2}, at::kFloat, 2);
  expect_refused("layer_norm: x: expected float32 or bfloat16, got Int", "layer_norm",
                 {x.to(at::kInt), weight, bias, kEps});
  expect_refused("layer_norm: bias: expected shape [8], got [7]", "layer_norm",
                 {x, weight, bias.narrow(0, 0, 7), kEps});
  expect_refused("layer_norm: weight: expected Float as x, got BFloat16", "layer_norm",
                 {x, weight.to(at::kBFloat16), bias, kEps});
  expect_refused("layer_norm_backward: mean: expected shape [2], got [2, 8]", "layer_norm_backward",
                 {dy, x, weight, x, row});
  expect_refused("layer_norm_backward: rstd: expected Float, got Double", "layer_norm_backward",
                 {dy, x, weight, row, row.to(at::kDouble)});
  const at::Tensor broad = random({1, 16385}, at::kFloat, 1);
  expect_refused("layer_norm_backward: x: expected at most 16384 elements along axis -1",
                 "layer_norm_backward", {broad, broad, broad[0], row, row});
}

DSV32_ON_EVERY_BACKEND(LayerNormOp);

}  // namespace
}  // namespace dsv32::suites
