// rope through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

struct Case {
  std::vector<int64_t> x;
  int64_t token_axes;  // leading axes that the tables share
  int64_t pairs;
};

const std::vector<Case> kCases = {
    {{1, 1, 2}, 2, 1},    {{2, 5, 16}, 2, 8},   {{2, 5, 4, 64}, 2, 32}, {{3, 4, 2, 128}, 2, 32},
    {{3, 1, 5, 7}, 2, 3}, {{0, 4, 2, 8}, 2, 4}, {{257, 6}, 1, 2},       {{8}, 0, 4},
};

struct Table {
  at::Tensor cos, sin;
};

/// docs/spec.md 1.3 on the CPU in float64.
at::Tensor oracle(const at::Tensor& x, const Table& table, bool interleaved, bool inverse) {
  const int64_t pairs = table.cos.size(-1);
  at::Tensor cos = wide(table.cos), sin = wide(table.sin) * (inverse ? -1 : 1);
  while (cos.dim() < x.dim()) cos = cos.unsqueeze(-2), sin = sin.unsqueeze(-2);
  const at::Tensor turned = x.narrow(-1, 0, 2 * pairs);
  const at::Tensor split = interleaved ? turned.unflatten(-1, {pairs, 2}).transpose(-1, -2)
                                       : turned.unflatten(-1, {2, pairs});
  const at::Tensor a = split.select(-2, 0), b = split.select(-2, 1);
  const std::vector<at::Tensor> parts = {a * cos - b * sin, b * cos + a * sin};
  const at::Tensor y = interleaved ? at::stack(parts, -1).flatten(-2) : at::cat(parts, -1);
  return at::cat({y, x.narrow(-1, 2 * pairs, x.size(-1) - 2 * pairs)}, -1);
}

class RopeOp : public OpTest {
 protected:
  Table table(const Case& c) const {
    std::vector<int64_t> shape(c.x.begin(), c.x.begin() + c.token_axes);
    shape.push_back(c.pairs);
    const at::Tensor angle = random(shape, at::kFloat, 7, 3);
    return {angle.cos(), angle.sin()};
  }
};

TEST_P(RopeOp, MatchesFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : kCases) {
      const Table angles = table(c);
      const at::Tensor x = random(c.x, dtype, 1);
      const Table sizes{angles.cos.abs(), angles.sin.abs()};
      for (const bool interleaved : {true, false}) {
        for (const bool inverse : {true, false}) {
          const auto got = call("rope", {x, angles.cos, angles.sin, interleaved, inverse});
          // a |cos| + b |sin| of both lanes of a pair: the size of their terms.
          const at::Tensor magnitude = wide(x).abs();
          const at::Tensor scale = at::maximum(oracle(magnitude, sizes, interleaved, false),
                                               oracle(magnitude, sizes, interleaved, true));
          expect_close("rope.y", got[0], oracle(wide(x), angles, interleaved, inverse), scale);
        }
      }
    }
  }
}

TEST_P(RopeOp, TheInverseIsTheGradient) {
  const Case c{{3, 5, 2, 24}, 2, 8};
  const Table angles = table(c);
  const at::Tensor x = random(c.x, at::kFloat, 1), dy = random(c.x, at::kFloat, 2);
  for (const bool interleaved : {true, false}) {
    at::Tensor x64 = wide(x).requires_grad_();
    const auto want =
        torch::autograd::grad({oracle(x64, angles, interleaved, false)}, {x64}, {wide(dy)});
    const auto got = call("rope", {dy, angles.cos, angles.sin, interleaved, true});
    expect_close("rope.y", got[0], want[0]);
  }
}

TEST_P(RopeOp, TakesInputsThatAreNotContiguous) {
  const Case c{{3, 5, 2, 24}, 2, 8};
  const Table angles = table(c);
  const at::Tensor x = random(c.x, at::kFloat, 1);
  const auto want = call("rope", {x, angles.cos, angles.sin, true, false});
  const auto got =
      call("rope", {strided(x), strided(angles.cos), strided(angles.sin), true, false});
  expect_same_bits(got[0], want[0]);
}

TEST_P(RopeOp, GivesTheSameBitsOnEveryRun) {
  const Case c{{40, 8, 16, 64}, 2, 32};
  const Table angles = table(c);
  const at::Tensor x = random(c.x, at::kFloat, 1);
  expect_deterministic([&] { return call("rope", {x, angles.cos, angles.sin, false, false}); });
}

TEST_P(RopeOp, RefusesBadInput) {
  const at::Tensor x = random({2, 3, 8}, at::kFloat, 1);
  const at::Tensor cos = random({2, 3, 4}, at::kFloat, 2);
  expect_refused("rope: x: expected float32 or bfloat16, got Double", "rope",
                 {x.to(at::kDouble), cos, cos, true, false});
  expect_refused("rope: cos: expected Float, got Double", "rope",
                 {x, cos.to(at::kDouble), cos, true, false});
  expect_refused("rope: sin: expected shape [2, 3, 4], got [2, 3, 3]", "rope",
                 {x, cos, cos.narrow(2, 0, 3), true, false});
  expect_refused("rope: x: expected leading axes [2, 3] as cos, got shape [3, 2, 8]", "rope",
                 {x.view({3, 2, 8}), cos, cos, true, false});
  expect_refused("rope: x: expected 8 lanes or more for the pairs of cos, got shape [2, 3, 7]",
                 "rope", {x.narrow(2, 0, 7), cos, cos, true, false});
  expect_refused("rope: x: expected 3 axes or more, got shape [48]", "rope",
                 {x.flatten(), cos, cos, true, false});
}

DSV32_ON_EVERY_BACKEND(RopeOp);

}  // namespace
}  // namespace dsv32::suites
