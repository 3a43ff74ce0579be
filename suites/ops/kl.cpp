// kl_sparse and kl_dense through the dispatcher, against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

constexpr double kScale = 0.2, kInf = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t batch, queries, keys, heads, width, first_query;
};

// One query, a chunk after others, more queries than a block of the CPU kernel (256 rows), more
// keys than one of its products (512), no queries.
const Shape kShapes[] = {{1, 1, 1, 1, 1, 0},     {3, 5, 9, 4, 40, 4},      {1, 33, 33, 16, 20, 0},
                         {2, 3, 70, 65, 24, 67}, {1, 2, 515, 3, 132, 513}, {1, 0, 4, 2, 8, 4},
                         {1, 130, 130, 2, 8, 0}};

struct Inputs {
  at::Tensor q, kv, scores, mask;
  int64_t first_query;
};

/// [B,S,T]: which keys a query sees.
at::Tensor visible(const Inputs& in) {
  const at::Tensor query = at::arange(in.q.size(1)).unsqueeze(1) + in.first_query;
  return (at::arange(in.kv.size(1)) <= query).logical_and(in.mask.cpu().unsqueeze(1));
}

/// -inf off the support; zeros in a row without support, so that a softmax over it stays finite.
at::Tensor on_support(const at::Tensor& x, const at::Tensor& support) {
  const at::Tensor sees_a_key = support.any(-1, /*keepdim=*/true);
  return x.masked_fill(support.logical_not(), -kInf).masked_fill(sees_a_key.logical_not(), 0);
}

/// Scaled logits of the attention [B,S,H,T] in float64.
at::Tensor logits(const Inputs& in) {
  return at::einsum("bshd,btd->bsht", {wide(in.q), wide(in.kv)}) * kScale;
}

/// Log-sum-exp of the attention over the support [B,S,T]; -inf without keys.
at::Tensor log_sum_exp(const Inputs& in, const at::Tensor& support) {
  return logits(in)
      .masked_fill(support.unsqueeze(2).logical_not(), -kInf)
      .logsumexp(-1)
      .to(at::kFloat)
      .to(in.q.device());
}

struct Wanted {
  at::Tensor target, student, rows, dscores;  // [B,S,T], rows [B,S]
};

/// docs/spec.md 2 as it stands: probabilities per head, summed, normalised; gradient by autograd.
Wanted oracle(const Inputs& in, const at::Tensor& support) {
  const at::Tensor hidden = support.logical_not();
  const at::Tensor per_head = at::softmax(on_support(logits(in), support.unsqueeze(2)), -1);
  const at::Tensor mass = per_head.sum(2).masked_fill(hidden, 0);
  const at::Tensor target = mass / mass.sum(-1, /*keepdim=*/true).clamp_min(1e-300);
  at::Tensor scores = wide(in.scores).masked_fill(hidden, 0).requires_grad_();
  const at::Tensor log_student = at::log_softmax(on_support(scores, support), -1);
  const at::Tensor rows =
      (at::xlogy(target, target) - target * log_student.masked_fill(hidden, 0)).sum(-1);
  const at::Tensor dscores = torch::autograd::grad({rows.sum()}, {scores})[0];
  return {target, log_student.exp().masked_fill(hidden, 0).detach(), rows.detach(), dscores};
}

class KlOp : public OpTest {
 protected:
  Inputs inputs(const Shape& s, at::ScalarType dtype) const {
    at::Tensor mask = at::ones({s.batch, s.keys}, at::kBool);
    if (s.keys > 3) mask.select(0, s.batch - 1).narrow(0, 0, 2).fill_(false);
    Inputs in{random({s.batch, s.queries, s.heads, s.width}, dtype, 1),
              random({s.batch, s.keys, s.width}, dtype, 2),
              random({s.batch, s.queries, s.keys}, at::kFloat, 3, 2), mask.to(GetParam().device),
              s.first_query};
    in.scores.masked_fill_(visible(in).logical_not().to(GetParam().device), -kInf);
    return in;
  }
  std::vector<at::Tensor> dense(const Inputs& in, const at::Tensor& lse) const {
    return call("kl_dense", {in.q, in.kv, lse, in.scores, in.mask, in.first_query, kScale});
  }
  std::vector<at::Tensor> sparse(const Inputs& in, const at::Tensor& lse,
                                 const at::Tensor& topk) const {
    return call("kl_sparse", {in.q, in.kv, lse, in.scores, topk, kScale});
  }
  /// Errors are measured against a value times the largest exponent of the case.
  static void expect_results(const std::vector<at::Tensor>& got, const Wanted& want,
                             const Inputs& in) {
    const at::Tensor size =
        at::einsum("bshd,btd->bsht", {wide(in.q).abs(), wide(in.kv).abs()}).flatten() * kScale;
    const double exponent = 10 + (size.numel() > 0 ? size.max().item<double>() : 0);
    const at::Tensor sum = want.target + want.student;
    expect_close("kl.target", got[0], want.target, want.target * exponent);
    expect_close("kl.student", got[1], want.student, want.student * exponent);
    expect_close("kl.rows", got[2], want.rows, (want.rows.abs() + 1) * exponent);
    expect_close("kl.dscores", got[3], want.dscores, sum * exponent);
  }
};

TEST_P(KlOp, DenseMatchesAutogradOfFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Inputs in = inputs(shape, dtype);
      const at::Tensor support = visible(in);
      expect_results(dense(in, log_sum_exp(in, support)), oracle(in, support), in);
    }
  }
}

TEST_P(KlOp, SparseMatchesAutogradOfFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Inputs in = inputs(shape, dtype);
      for (const int64_t k : {int64_t{1}, shape.keys / 2 + 1, shape.keys + 1}) {
        const at::Tensor topk = call("select_topk", {in.scores, k, true})[0];
        // The last column takes what -1 names.
        const at::Tensor key = topk.cpu().to(at::kLong).masked_fill(topk.cpu() < 0, shape.keys);
        const at::Tensor support =
            at::zeros({shape.batch, shape.queries, shape.keys + 1}, at::kBool)
                .scatter_(-1, key, true)
                .narrow(-1, 0, shape.keys);
        const Wanted all = oracle(in, support);
        const auto at_places = [&](const at::Tensor& x) {
          return at::constant_pad_nd(x, {0, 1}).gather(-1, key);
        };
        const Wanted want{at_places(all.target), at_places(all.student), all.rows,
                          at_places(all.dscores)};
        expect_results(sparse(in, log_sum_exp(in, support), topk), want, in);
      }
    }
  }
}

TEST_P(KlOp, DenseAndSparseAgreeOnEveryKey) {
  const Inputs in = inputs({1, 6, 9, 4, 40, 3}, at::kFloat);
  const at::Tensor lse = log_sum_exp(in, visible(in));
  const at::Tensor topk = call("select_topk", {in.scores, 9, false})[0];
  const auto a = dense(in, lse), b = sparse(in, lse, topk);
  expect_close("kl.rows", a[2], wide(b[2]), wide(b[2]).abs() * 10 + 10);
}

TEST_P(KlOp, TakesInputsThatAreNotContiguous) {
  const Inputs in = inputs({2, 5, 9, 4, 40, 4}, at::kFloat);
  const Inputs loose{strided(in.q), strided(in.kv), strided(in.scores),
                     at::stack({in.mask, in.mask}, -1).select(-1, 0), 4};
  const at::Tensor lse = log_sum_exp(in, visible(in));
  const auto want = dense(in, lse), got = dense(loose, strided(lse));
  for (size_t i = 0; i < want.size(); ++i) expect_same_bits(got[i], want[i]);
}

TEST_P(KlOp, GivesTheSameBitsOnEveryRun) {
  const Inputs in = inputs({2, 20, 70, 3, 24, 50}, at::kFloat);
  const at::Tensor lse = log_sum_exp(in, visible(in));
  const at::Tensor topk = call("select_topk", {in.scores, 20, false})[0];
  expect_deterministic([&] {
    std::vector<at::Tensor> all = dense(in, lse);
    for (const at::Tensor& t : sparse(in, lse, topk)) all.push_back(t);
    return all;
  });
}

TEST_P(KlOp, RefusesBadInput) {
  const Inputs in = inputs({2, 3, 5, 4, 8, 2}, at::kFloat);
  const at::Tensor lse = log_sum_exp(in, visible(in));
  const at::Tensor topk = at::zeros({2, 3, 2}, at::kInt).to(GetParam().device);
  expect_refused("kl_sparse: q: expected float32 or bfloat16, got Double", "kl_sparse",
                 {in.q.to(at::kDouble), in.kv, lse, in.scores, topk, kScale});
  expect_refused("kl_sparse: kv: expected shape [2, 5, 8], got [2, 5, 7]", "kl_sparse",
                 {in.q, in.kv.narrow(2, 0, 7), lse, in.scores, topk, kScale});
  expect_refused("kl_sparse: lse: expected shape [2, 3, 4], got [2, 3, 3]", "kl_sparse",
                 {in.q, in.kv, lse.narrow(2, 0, 3), in.scores, topk, kScale});
  expect_refused("kl_sparse: topk: expected Int, got Long", "kl_sparse",
                 {in.q, in.kv, lse, in.scores, topk.to(at::kLong), kScale});
  expect_refused("kl_dense: scores: expected Float, got BFloat16", "kl_dense",
                 {in.q, in.kv, lse, in.scores.to(at::kBFloat16), in.mask, 2, kScale});
  expect_refused("kl_dense: mask: expected shape [2, 5], got [2, 4]", "kl_dense",
                 {in.q, in.kv, lse, in.scores, in.mask.narrow(1, 0, 4), 2, kScale});
  expect_refused("kl_dense: first_query: expected 0 or more, got -1", "kl_dense",
                 {in.q, in.kv, lse, in.scores, in.mask, -1, kScale});
  if (!GetParam().device.is_cpu()) return;
  expect_refused("kl_sparse: topk: expected 0 to 4, got 5", "kl_sparse",
                 {in.q, in.kv, lse, in.scores, topk + 5, kScale});
}

DSV32_ON_EVERY_BACKEND(KlOp);

}  // namespace
}  // namespace dsv32::suites
