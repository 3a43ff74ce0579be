// sparse_mla and dense_mla through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

constexpr double kScale = 0.3;

struct Shape {
  int64_t batch, queries, keys, heads, lora, rope;
  int64_t k;            // of topk
  int64_t first_query;  // of the dense form
};

// Keys below, at and above k; more rows than a dense task of the CPU kernel; no tokens; no slots.
const std::vector<Shape> kShapes = {
    {1, 1, 1, 1, 1, 1, 1, 0},      {3, 5, 7, 4, 16, 8, 8, 2},      {1, 9, 8, 3, 5, 2, 8, 0},
    {2, 11, 40, 16, 24, 8, 7, 29}, {1, 70, 70, 4, 16, 16, 9, 0},   {2, 0, 4, 2, 8, 8, 3, 0},
    {1, 2, 5, 2, 8, 8, 0, 3},      {1, 3, 33, 2, 512, 64, 32, 30},
};

struct Data {
  at::Tensor q, kv, dout;  // of the backend
  at::Tensor topk, mask;
  at::Tensor listed, visible;  // [B,S,T] bool on the CPU: what topk and mask say
};

struct Result {
  at::Tensor out, lse, dq, dkv;
};

struct Expected {
  Result value;
  Result scale;
};

/// Plain float64; the gradients by autograd. support: [B,S,T] bool.
Expected oracle(const Data& data, const at::Tensor& support) {
  const at::Tensor q = wide(data.q).requires_grad_(), kv = wide(data.kv).requires_grad_();
  const at::Tensor dout = wide(data.dout), seen = support.unsqueeze(2);
  const int64_t lora = dout.size(-1);
  const at::Tensor scores = at::einsum("bshd,btd->bsht", {q, kv}) * kScale;
  // Finite in rows without keys: their probabilities are taken away after the softmax.
  const at::Tensor probs = at::softmax(scores.masked_fill(~seen, -1e9), -1) * seen;
  const at::Tensor value = kv.narrow(-1, 0, lora);
  Expected want;
  want.value.out = at::einsum("bsht,btd->bshd", {probs, value});
  want.value.lse = scores.masked_fill(~seen, -INFINITY).logsumexp(-1);
  const auto gradients = torch::autograd::grad({want.value.out}, {q, kv}, {dout});
  want.value.dq = gradients[0];
  want.value.dkv = gradients[1];

  const at::NoGradGuard guard;
  const at::Tensor size = at::einsum("bshd,btd->bsht", {q.abs(), kv.abs()}) * kScale * seen;
  const at::Tensor spread = at::cat({at::zeros_like(q.narrow(-1, 0, 1)), size}, -1).amax(-1) + 1;
  const at::Tensor weight = probs * spread.unsqueeze(-1);
  want.scale.out = at::einsum("bsht,btd->bshd", {weight, value.abs()});
  want.scale.lse = spread;
  const at::Tensor delta = (dout.abs() * want.value.out.abs()).sum(-1, /*keepdim=*/true);
  const at::Tensor slope =
      kScale * weight * (at::einsum("bshd,btd->bsht", {dout.abs(), value.abs()}) + delta);
  want.scale.dq = at::einsum("bsht,btd->bshd", {slope, kv.abs()});
  want.scale.dkv = at::einsum("bsht,bshd->btd", {slope, q.abs()});
  want.scale.dkv.narrow(-1, 0, lora).add_(at::einsum("bsht,bshd->btd", {weight, dout.abs()}));
  return want;
}

class SparseMlaOp : public OpTest {
 protected:
  Data data(const Shape& s, at::ScalarType dtype) const {
    const int64_t width = s.lora + s.rope;
    Data data{.q = random({s.batch, s.queries, s.heads, width}, dtype, 1),
              .kv = random({s.batch, s.keys, width}, dtype, 2),
              .dout = random({s.batch, s.queries, s.heads, s.lora}, dtype, 3)};
    const at::Tensor key = at::arange(s.keys), query = at::arange(s.queries);
    const at::Tensor batch = at::arange(s.batch).unsqueeze(1);
    const at::Tensor mask = (key % 5 != 4).logical_and(key >= batch);  // left padding, and holes
    const at::Tensor causal = key <= (query.unsqueeze(1) + s.first_query);
    data.visible = causal.logical_and(mask.unsqueeze(1));
    data.mask = mask.to(GetParam().device);
    set_topk(data, s);
    return data;
  }

  Result run_sparse(const Data& d, bool deterministic = true) const {
    const int64_t lora = d.dout.size(-1);
    const auto forward = call("sparse_mla", {d.q, d.kv, d.topk, kScale, lora});
    const auto backward = call("sparse_mla_backward", {d.dout, forward[0], forward[1], d.q, d.kv,
                                                       d.topk, kScale, lora, deterministic});
    return {forward[0], forward[1], backward[0], backward[1]};
  }

  Result run_dense(const Data& d, int64_t first_query, bool deterministic = true) const {
    const int64_t lora = d.dout.size(-1);
    const auto forward = call("dense_mla", {d.q, d.kv, d.mask, first_query, kScale, lora});
    const auto backward =
        call("dense_mla_backward", {d.dout, forward[0], forward[1], d.q, d.kv, d.mask, first_query,
                                    kScale, lora, deterministic});
    return {forward[0], forward[1], backward[0], backward[1]};
  }

 private:
  /// Random distinct keys, fewer from row to row down to none, ascending in every second row.
  void set_topk(Data& data, const Shape& s) const {
    const at::Tensor noise = wide(random({s.batch, s.queries, s.keys}, at::kFloat, 4));
    const int64_t most = std::min(s.k, s.keys);
    const at::Tensor order = noise.argsort(int64_t{-1}, false).narrow(-1, 0, most);
    at::Tensor topk = at::full({s.batch, s.queries, s.k}, -1, at::kLong);
    data.listed = at::zeros({s.batch, s.queries, s.keys}, at::kBool);
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t i = 0; i < s.queries; ++i) {
        const int64_t count = std::max<int64_t>(most - i % (most + 1), 0);
        at::Tensor row = order[b][i].narrow(0, 0, count);
        if (i % 2 == 0) row = std::get<0>(row.sort());
        topk[b][i].narrow(0, 0, count).copy_(row);
        data.listed[b][i].index_fill_(0, row, true);
      }
    }
    data.topk = topk.to(at::kInt).to(GetParam().device);
  }
};

void expect_result(const Result& got, const Expected& want) {
  expect_close("sparse_mla.out", got.out, want.value.out.detach(), want.scale.out);
  expect_close("sparse_mla.lse", got.lse, want.value.lse.detach(), want.scale.lse);
  expect_close("sparse_mla.dq", got.dq, want.value.dq, want.scale.dq);
  expect_close("sparse_mla.dkv", got.dkv, want.value.dkv, want.scale.dkv);
}

TEST_P(SparseMlaOp, MatchesFloat64OnListedKeys) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Data d = data(shape, dtype);
      const Expected want = oracle(d, d.listed);
      expect_result(run_sparse(d), want);
      expect_result(run_sparse(d, /*deterministic=*/false), want);
    }
  }
}

TEST_P(SparseMlaOp, MatchesFloat64OnAllVisibleKeys) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Data d = data(shape, dtype);
      const Expected want = oracle(d, d.visible);
      expect_result(run_dense(d, shape.first_query), want);
      expect_result(run_dense(d, shape.first_query, /*deterministic=*/false), want);
    }
  }
}

TEST_P(SparseMlaOp, TakesInputsThatAreNotContiguous) {
  const Data dense = data({2, 3, 9, 4, 16, 8, 5, 6}, at::kFloat);
  Data loose = dense;
  for (at::Tensor* tensor : {&loose.q, &loose.kv, &loose.dout, &loose.topk}) {
    *tensor = strided(*tensor);
  }
  loose.mask = at::stack({dense.mask, ~dense.mask}, -1).select(-1, 0);
  const auto expect_same = [](const Result& a, const Result& b) {
    expect_same_bits(a.out, b.out);
    expect_same_bits(a.lse, b.lse);
    expect_same_bits(a.dq, b.dq);
    expect_same_bits(a.dkv, b.dkv);
  };
  expect_same(run_sparse(loose), run_sparse(dense));
  expect_same(run_dense(loose, 6), run_dense(dense, 6));
}

TEST_P(SparseMlaOp, GivesTheSameBitsOnEveryRun) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Data d = data({2, 37, 37, 4, 16, 8, 11, 0}, dtype);
    expect_deterministic([&] {
      const Result sparse = run_sparse(d), dense = run_dense(d, 0);
      return std::vector<at::Tensor>{sparse.out, sparse.lse, sparse.dq, sparse.dkv,
                                     dense.out,  dense.lse,  dense.dq,  dense.dkv};
    });
  }
}

TEST_P(SparseMlaOp, RefusesBadInput) {
  const Data d = data({2, 3, 9, 4, 16, 8, 5, 6}, at::kFloat);
  const Result r = run_sparse(d);
  const auto refused = [&](const std::string& text, const at::Tensor& q, const at::Tensor& kv,
                           const at::Tensor& topk, int64_t lora) {
    expect_refused("sparse_mla: " + text, "sparse_mla", {q, kv, topk, kScale, lora});
  };
  refused("q: expected float32 or bfloat16, got Double", d.q.to(at::kDouble), d.kv, d.topk, 16);
  refused("q: expected 4 axes, got shape [3, 4, 24]", d.q[0], d.kv, d.topk, 16);
  refused("kv: expected Float as q, got BFloat16", d.q, d.kv.to(at::kBFloat16), d.topk, 16);
  refused("kv: expected shape [2, 9, 24], got [2, 9, 23]", d.q, d.kv.narrow(-1, 0, 23), d.topk, 16);
  refused("topk: expected Int, got Long", d.q, d.kv, d.topk.to(at::kLong), 16);
  refused("topk: expected shape [2, 3, 5], got [2, 1, 5]", d.q, d.kv, d.topk.narrow(1, 0, 1), 16);
  refused("kv_lora: expected 1 to 24, got 25", d.q, d.kv, d.topk, 25);
  refused("kv_lora: expected 1 to 24, got 0", d.q, d.kv, d.topk, 0);
  const at::Tensor broad = random({1, 1, 1, 577}, at::kFloat, 1);
  refused("q: expected at most 576 elements along axis -1", broad, broad[0],
          at::zeros({1, 1, 1}, d.topk.options()), 512);
  if (d.q.is_cpu()) {
    refused("topk: expected 0 to 8, got 9", d.q, d.kv, at::full_like(d.topk, 9), 16);
    refused("topk: expected 0 to 8, got -2", d.q, d.kv, at::full_like(d.topk, -2), 16);
  }
  expect_refused("dense_mla: mask: expected shape [2, 9], got [2, 8]", "dense_mla",
                 {d.q, d.kv, d.mask.narrow(1, 0, 8), 0, kScale, 16});
  expect_refused("dense_mla: first_query: expected 0 or more, got -1", "dense_mla",
                 {d.q, d.kv, d.mask, -1, kScale, 16});
  expect_refused("sparse_mla_backward: lse: expected shape [2, 3, 4], got [2, 3]",
                 "sparse_mla_backward",
                 {d.dout, r.out, r.lse.select(-1, 0), d.q, d.kv, d.topk, kScale, 16, true});
  expect_refused("dense_mla_backward: dout: expected shape [2, 3, 4, 16], got [2, 3, 4, 24]",
                 "dense_mla_backward", {d.q, r.out, r.lse, d.q, d.kv, d.mask, 0, kScale, 16, true});
}

DSV32_ON_EVERY_BACKEND(SparseMlaOp);

}  // namespace
}  // namespace dsv32::suites
