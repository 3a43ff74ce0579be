// hadamard through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

/// The matrix by Sylvester's rule, [n,n] float64.
at::Tensor matrix(int64_t n) {
  at::Tensor h = at::ones({1, 1}, at::kDouble);
  while (h.size(0) < n) h = at::cat({at::cat({h, h}, 1), at::cat({h, -h}, 1)}, 0);
  return h;
}

class HadamardOp : public OpTest {};

TEST_P(HadamardOp, MatchesFloat64) {
  const std::vector<std::vector<int64_t>> shapes = {{1},        {0, 8},  {5, 2},      {33, 16},
                                                    {3, 7, 32}, {9, 64}, {3, 5, 128}, {2, 256}};
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : shapes) {
      const at::Tensor x = random(shape, dtype, 1);
      const int64_t n = shape.back();
      const double scale = 1 / std::sqrt(static_cast<double>(n));
      const auto got = call("hadamard", {x, scale});
      const at::Tensor size = wide(x).abs().sum(-1, /*keepdim=*/true).expand(shape);
      expect_close("hadamard.y", got[0], wide(x).matmul(matrix(n)) * scale, size * scale);
    }
  }
}

TEST_P(HadamardOp, IsExactOnSmallIntegers) {
  const at::Tensor x = random({4, 128}, at::kFloat, 1, 4).round();
  const auto got = call("hadamard", {x, 1.0});
  EXPECT_TRUE(at::equal(wide(got[0]), wide(x).matmul(matrix(128))));
}

TEST_P(HadamardOp, TakesInputsThatAreNotContiguous) {
  const at::Tensor x = random({3, 5, 64}, at::kFloat, 1);
  expect_same_bits(call("hadamard", {strided(x), 0.5})[0], call("hadamard", {x, 0.5})[0]);
}

TEST_P(HadamardOp, GivesTheSameBitsOnEveryRun) {
  const at::Tensor x = random({700, 128}, at::kFloat, 1);
  expect_deterministic([&] { return call("hadamard", {x, 0.5}); });
}

TEST_P(HadamardOp, RefusesBadInput) {
  const at::Tensor x = random({2, 8}, at::kFloat, 1);
  expect_refused("hadamard: x: expected float32 or bfloat16, got Int", "hadamard",
                 {x.to(at::kInt), 1.0});
  for (const int64_t width : {0, 3, 100, 512}) {
    expect_refused("hadamard: x: expected a power of two up to 256 along the last axis, got shape",
                   "hadamard", {at::empty({2, width}, x.options()), 1.0});
  }
  expect_refused("hadamard: x: expected 1 axes or more", "hadamard", {x[0][0], 1.0});
}

DSV32_ON_EVERY_BACKEND(HadamardOp);

}  // namespace
}  // namespace dsv32::suites
