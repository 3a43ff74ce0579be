// index_scores through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t batch, queries, keys, heads, dim, first_query;
};

// One query, a chunk after others, more queries than a block of the CPU kernel (256 rows), more
// keys than one of its products (512), no queries.
const Shape kShapes[] = {{1, 1, 1, 1, 1, 0},     {3, 5, 9, 4, 32, 4},     {1, 33, 33, 16, 8, 0},
                         {2, 6, 70, 64, 16, 64}, {1, 2, 515, 3, 12, 513}, {1, 0, 4, 2, 8, 4},
                         {1, 300, 300, 1, 4, 0}};

struct Inputs {
  at::Tensor q, k, weights, mask;
  int64_t first_query;
};

/// [B,S,T]: which keys a query sees.
at::Tensor visible(const Inputs& in) {
  const int64_t queries = in.q.size(1), keys = in.k.size(1);
  const at::Tensor query = at::arange(queries).unsqueeze(1) + in.first_query;
  return (at::arange(keys) <= query).logical_and(in.mask.cpu().unsqueeze(1));
}

/// [B,S,T] in float64, not masked. The plain formula: it makes [B,S,HI,T].
at::Tensor formula(const at::Tensor& q, const at::Tensor& k, const at::Tensor& weights) {
  const at::Tensor products = at::einsum("bshd,btd->bsht", {q, k});
  return (weights.unsqueeze(-1) * products.relu()).sum(2);
}

struct Gradients {
  at::Tensor dq, dk, dweights;
};

/// Autograd of the formula for dscores [B,S,T] float64.
Gradients oracle_gradients(const Inputs& in, const at::Tensor& dscores) {
  at::Tensor q = wide(in.q).requires_grad_(), k = wide(in.k).requires_grad_();
  at::Tensor weights = wide(in.weights).requires_grad_();
  const auto grads = torch::autograd::grad({formula(q, k, weights)}, {q, k, weights}, {dscores});
  return {grads[0], grads[1], grads[2]};
}

/// The same with magnitudes in every place: what rounding is measured against.
Gradients gradient_scales(const Inputs& in, const at::Tensor& dscores) {
  const Inputs size{in.q.abs(), in.k.abs(), in.weights.abs(), in.mask, in.first_query};
  return oracle_gradients(size, dscores.abs());
}

class IndexScoresOp : public OpTest {
 protected:
  Inputs inputs(const Shape& s, at::ScalarType dtype) const {
    at::Tensor mask = at::ones({s.batch, s.keys}, at::kBool);
    if (s.keys > 3) mask.select(0, s.batch - 1).narrow(0, 0, 2).fill_(false);
    return {random({s.batch, s.queries, s.heads, s.dim}, dtype, 1),
            random({s.batch, s.keys, s.dim}, dtype, 2),
            random({s.batch, s.queries, s.heads}, at::kFloat, 3), mask.to(GetParam().device),
            s.first_query};
  }
  at::Tensor scores(const Inputs& in) const {
    return call("index_scores", {in.q, in.k, in.weights, in.mask, in.first_query})[0];
  }
  std::vector<at::Tensor> dense(const at::Tensor& dscores, const Inputs& in) const {
    return call("index_scores_backward",
                {dscores, in.q, in.k, in.weights, in.mask, in.first_query});
  }
  std::vector<at::Tensor> sparse(const at::Tensor& dscores, const at::Tensor& topk,
                                 const Inputs& in) const {
    return call("index_scores_backward_sparse", {dscores, topk, in.q, in.k, in.weights});
  }
  static void expect_gradients(const std::vector<at::Tensor>& got, const Inputs& in,
                               const at::Tensor& dscores) {
    const Gradients want = oracle_gradients(in, dscores), size = gradient_scales(in, dscores);
    expect_close("index_scores.dq", got[0], want.dq, size.dq);
    expect_close("index_scores.dk", got[1], want.dk, size.dk);
    expect_close("index_scores.dweights", got[2], want.dweights, size.dweights);
  }
};

TEST_P(IndexScoresOp, MatchesFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Inputs in = inputs(shape, dtype);
      const at::Tensor got = scores(in).cpu(), hidden = visible(in).logical_not();
      EXPECT_TRUE(at::equal(got.isneginf(), hidden)) << "hidden keys";
      expect_close("index_scores.scores", got.masked_fill(hidden, 0),
                   formula(wide(in.q), wide(in.k), wide(in.weights)).masked_fill(hidden, 0),
                   formula(wide(in.q).abs(), wide(in.k).abs(), wide(in.weights).abs()));
    }
  }
}

TEST_P(IndexScoresOp, GradientsMatchAutogradOfFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Inputs in = inputs(shape, dtype);
      const at::Tensor dscores = random({shape.batch, shape.queries, shape.keys}, at::kFloat, 4);
      expect_gradients(dense(dscores, in), in,
                       wide(dscores).masked_fill(visible(in).logical_not(), 0));
    }
  }
}

TEST_P(IndexScoresOp, GradientsOfSelectedKeysMatchAutogradOfFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Inputs in = inputs(shape, dtype);
      for (const int64_t k : {int64_t{1}, shape.keys / 2 + 1, shape.keys + 1}) {
        const at::Tensor topk = call("select_topk", {scores(in), k, true})[0];
        const at::Tensor dscores = random({shape.batch, shape.queries, k}, at::kFloat, 5);
        // The last column takes what -1 names.
        const at::Tensor at_key = topk.cpu().to(at::kLong).masked_fill(topk.cpu() < 0, shape.keys);
        const at::Tensor spread =
            at::zeros({shape.batch, shape.queries, shape.keys + 1}, at::kDouble)
                .scatter_(-1, at_key, wide(dscores));
        expect_gradients(sparse(dscores, topk, in), in, spread.narrow(-1, 0, shape.keys));
      }
    }
  }
}

TEST_P(IndexScoresOp, ChunksGiveTheScoresOfOnePass) {
  const Inputs all = inputs({2, 40, 40, 4, 16, 0}, at::kFloat);
  const at::Tensor want = scores(all);
  for (const int64_t first : {0, 17, 39}) {
    const int64_t count = first == 17 ? 22 : 1;
    const Inputs chunk{all.q.narrow(1, first, count), all.k.narrow(1, 0, first + count),
                       all.weights.narrow(1, first, count), all.mask.narrow(1, 0, first + count),
                       first};
    const at::Tensor part = want.narrow(1, first, count).narrow(2, 0, first + count).cpu();
    const at::Tensor got = scores(chunk).cpu();
    EXPECT_TRUE(at::equal(got.isneginf(), part.isneginf()));
    expect_close("index_scores.scores", got.masked_fill(got.isneginf(), 0),
                 wide(part.masked_fill(part.isneginf(), 0)));
  }
}

TEST_P(IndexScoresOp, TakesInputsThatAreNotContiguous) {
  const Inputs in = inputs({2, 5, 9, 4, 16, 4}, at::kFloat);
  const Inputs loose{strided(in.q), strided(in.k), strided(in.weights),
                     at::stack({in.mask, in.mask}, -1).select(-1, 0), 4};
  const at::Tensor dscores = random({2, 5, 9}, at::kFloat, 4);
  expect_same_bits(scores(loose), scores(in));
  const auto want = dense(dscores, in), got = dense(strided(dscores), loose);
  for (size_t i = 0; i < want.size(); ++i) expect_same_bits(got[i], want[i]);
}

TEST_P(IndexScoresOp, GivesTheSameBitsOnEveryRun) {
  const Inputs in = inputs({2, 70, 90, 5, 16, 20}, at::kFloat);
  const at::Tensor dscores = random({2, 70, 90}, at::kFloat, 4);
  const at::Tensor topk = call("select_topk", {scores(in), 20, false})[0];
  expect_deterministic([&] {
    std::vector<at::Tensor> all = dense(dscores, in);
    all.push_back(scores(in));
    for (const at::Tensor& t : sparse(dscores.narrow(2, 0, 20), topk, in)) all.push_back(t);
    return all;
  });
}

TEST_P(IndexScoresOp, RefusesBadInput) {
  const Inputs in = inputs({2, 3, 5, 4, 8, 2}, at::kFloat);
  const at::Tensor dscores = random({2, 3, 5}, at::kFloat, 4);
  const at::Tensor topk = at::zeros({2, 3, 5}, at::kInt).to(GetParam().device);
  expect_refused("index_scores: q: expected float32 or bfloat16, got Double", "index_scores",
                 {in.q.to(at::kDouble), in.k, in.weights, in.mask, 2});
  expect_refused("index_scores: k: expected Float as q, got BFloat16", "index_scores",
                 {in.q, in.k.to(at::kBFloat16), in.weights, in.mask, 2});
  expect_refused("index_scores: weights: expected Float, got BFloat16", "index_scores",
                 {in.q, in.k, in.weights.to(at::kBFloat16), in.mask, 2});
  expect_refused("index_scores: mask: expected shape [2, 5], got [2, 4]", "index_scores",
                 {in.q, in.k, in.weights, in.mask.narrow(1, 0, 4), 2});
  expect_refused("index_scores: first_query: expected 0 or more, got -1", "index_scores",
                 {in.q, in.k, in.weights, in.mask, -1});
  const Inputs broad = inputs({1, 1, 1, 1, 129, 0}, at::kFloat);
  expect_refused("index_scores: q: expected at most 128 elements along axis -1", "index_scores",
                 {broad.q, broad.k, broad.weights, broad.mask, 0});
  expect_refused("index_scores_backward: dscores: expected shape [2, 3, 5], got [3, 5]",
                 "index_scores_backward", {dscores[0], in.q, in.k, in.weights, in.mask, 2});
  expect_refused("index_scores_backward_sparse: topk: expected Int, got Long",
                 "index_scores_backward_sparse",
                 {dscores, topk.to(at::kLong), in.q, in.k, in.weights});
  if (!GetParam().device.is_cpu()) return;
  expect_refused("index_scores_backward_sparse: topk: expected 0 to 4, got 5",
                 "index_scores_backward_sparse", {dscores, topk + 5, in.q, in.k, in.weights});
}

DSV32_ON_EVERY_BACKEND(IndexScoresOp);

}  // namespace
}  // namespace dsv32::suites
