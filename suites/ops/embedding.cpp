// embedding_backward through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

struct Case {
  int64_t tokens, hidden, vocabulary;
};

const Case kCases[] = {{64, 64, 100}, {1, 1, 1}, {0, 8, 5}, {33, 7, 2}, {300, 16, 10}};

class EmbeddingOp : public OpTest {
 protected:
  at::Tensor dout(const Case& c, at::ScalarType dtype) const {
    return random({c.tokens, c.hidden}, dtype, 1);
  }
  at::Tensor ids(const Case& c) const {
    const at::Tensor t = at::arange(c.tokens, at::kLong);
    return ((t * t * 7 + t) % c.vocabulary).to(GetParam().device);
  }
};

TEST_P(EmbeddingOp, MatchesFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Case& c : kCases) {
      const at::Tensor d = dout(c, dtype), zeros = at::zeros({c.vocabulary, c.hidden}, at::kDouble);
      const auto got = call("embedding_backward", {d, ids(c), c.vocabulary})[0];
      EXPECT_EQ(got.scalar_type(), dtype);
      const at::Tensor size = zeros.index_add(0, ids(c).cpu(), wide(d).abs());
      expect_close("embedding.dweight", got, zeros.index_add(0, ids(c).cpu(), wide(d)), size);
    }
  }
}

TEST_P(EmbeddingOp, TakesInputsThatAreNotContiguous) {
  const Case c = kCases[0];
  const at::Tensor d = dout(c, at::kFloat);
  expect_same_bits(call("embedding_backward", {strided(d), strided(ids(c)), c.vocabulary})[0],
                   call("embedding_backward", {d, ids(c), c.vocabulary})[0]);
}

TEST_P(EmbeddingOp, GivesTheSameBitsOnEveryRun) {
  const Case c{500, 65, 7};
  const at::Tensor d = dout(c, at::kFloat);
  expect_deterministic([&] { return call("embedding_backward", {d, ids(c), c.vocabulary}); });
}

TEST_P(EmbeddingOp, RefusesBadInput) {
  const Case c{3, 4, 5};
  const at::Tensor d = dout(c, at::kFloat), i = ids(c);
  const std::string op = "embedding_backward";
  expect_refused(op + ": dout: expected float32 or bfloat16, got Double", op,
                 {d.to(at::kDouble), i, 5});
  expect_refused(op + ": dout: expected 2 axes, got shape [4]", op, {d[0], i, 5});
  expect_refused(op + ": ids: expected Long, got Int", op, {d, i.to(at::kInt), 5});
  expect_refused(op + ": ids: expected shape [3], got [2]", op, {d, i.narrow(0, 0, 2), 5});
  expect_refused(op + ": vocab: expected 1 or more, got 0", op, {d, i, 0});
  if (!d.is_cpu()) return;
  expect_refused(op + ": ids: expected 0 to 4, got 5", op, {d, at::full_like(i, 5), 5});
  expect_refused(op + ": ids: expected 0 to 4, got -1", op, {d, at::full_like(i, -1), 5});
}

DSV32_ON_EVERY_BACKEND(EmbeddingOp);

}  // namespace
}  // namespace dsv32::suites
