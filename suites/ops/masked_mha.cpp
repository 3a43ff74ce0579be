// masked_mha through the dispatcher, against float64; the absorbed and the expanded form agree.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

constexpr double kScale = 0.3;

struct Shape {
  int64_t batch, queries, keys, heads, nope, rope, value;
};

// Around a word of 32 keys and a block of 64 queries; no tokens; no keys; the released widths.
const std::vector<Shape> kShapes = {
    {1, 1, 1, 1, 1, 1, 1},    {3, 5, 31, 2, 5, 3, 7},      {1, 63, 32, 2, 16, 8, 8},
    {2, 64, 33, 1, 8, 8, 24}, {1, 65, 96, 3, 8, 8, 8},     {2, 0, 4, 2, 8, 8, 8},
    {1, 3, 0, 2, 8, 8, 8},    {1, 4, 70, 2, 128, 64, 128},
};

struct Data {
  at::Tensor q, k_nope, k_rope, v, dout;
  at::Tensor seen;     // [B,S,T] bool on the CPU
  at::Tensor support;  // the same in bits, and bits past the last key
};

struct Result {
  at::Tensor out, lse, dq, dk_nope, dk_rope, dv;
};

struct Expected {
  Result value;
  Result scale;
};

/// Plain float64; the gradients by autograd.
Expected oracle(const Data& data) {
  const at::Tensor q = wide(data.q).requires_grad_(), v = wide(data.v).requires_grad_();
  const at::Tensor k_nope = wide(data.k_nope).requires_grad_();
  const at::Tensor k_rope = wide(data.k_rope).requires_grad_();
  const at::Tensor dout = wide(data.dout), seen = data.seen.unsqueeze(2);
  const int64_t nope = k_nope.size(-1);
  const at::Tensor shared = k_rope.unsqueeze(2).expand({-1, -1, q.size(2), -1});
  const at::Tensor k = at::cat({k_nope, shared}, -1);
  const at::Tensor scores = at::einsum("bshd,bthd->bsht", {q, k}) * kScale;
  // Finite in rows without keys: their probabilities are taken away after the softmax.
  const at::Tensor probs = at::softmax(scores.masked_fill(~seen, -1e9), -1) * seen;
  Expected want;
  want.value.out = at::einsum("bsht,bthd->bshd", {probs, v});
  want.value.lse = scores.masked_fill(~seen, -INFINITY).logsumexp(-1);
  const auto gradients = torch::autograd::grad({want.value.out}, {q, k_nope, k_rope, v}, {dout});
  want.value.dq = gradients[0];
  want.value.dk_nope = gradients[1];
  want.value.dk_rope = gradients[2];
  want.value.dv = gradients[3];

  const at::NoGradGuard guard;
  const at::Tensor size = at::einsum("bshd,bthd->bsht", {q.abs(), k.abs()}) * kScale * seen;
  const at::Tensor spread = at::cat({at::zeros_like(q.narrow(-1, 0, 1)), size}, -1).amax(-1) + 1;
  const at::Tensor weight = probs * spread.unsqueeze(-1);
  want.scale.out = at::einsum("bsht,bthd->bshd", {weight, v.abs()});
  want.scale.lse = spread;
  const at::Tensor delta = (dout.abs() * want.value.out.abs()).sum(-1, /*keepdim=*/true);
  const at::Tensor slope =
      kScale * weight * (at::einsum("bshd,bthd->bsht", {dout.abs(), v.abs()}) + delta);
  want.scale.dq = at::einsum("bsht,bthd->bshd", {slope, k.abs()});
  const at::Tensor dk = at::einsum("bsht,bshd->bthd", {slope, q.abs()});
  want.scale.dk_nope = dk.narrow(-1, 0, nope);
  want.scale.dk_rope = dk.narrow(-1, nope, k_rope.size(-1)).sum(2);
  want.scale.dv = at::einsum("bsht,bshd->bthd", {weight, dout.abs()});
  return want;
}

class MaskedMhaOp : public OpTest {
 protected:
  Data data(const Shape& s, at::ScalarType dtype) const {
    Data data{.q = random({s.batch, s.queries, s.heads, s.nope + s.rope}, dtype, 1),
              .k_nope = random({s.batch, s.keys, s.heads, s.nope}, dtype, 2),
              .k_rope = random({s.batch, s.keys, s.rope}, dtype, 3),
              .v = random({s.batch, s.keys, s.heads, s.value}, dtype, 4),
              .dout = random({s.batch, s.queries, s.heads, s.value}, dtype, 5)};
    // A band of keys behind each query, holes in it, every seventh row without keys.
    const at::Tensor key = at::arange(s.keys), query = at::arange(s.queries).unsqueeze(1);
    const at::Tensor noise = wide(random({s.batch, s.queries, s.keys}, at::kFloat, 6)) > -0.7;
    const at::Tensor band = (key <= query + s.keys / 2).logical_and(key > query - 40);
    data.seen = noise.logical_and(band).logical_and(query % 7 != 6);
    set_support(data);
    return data;
  }

  Result run(const Data& d) const {
    const auto forward = call("masked_mha", {d.q, d.k_nope, d.k_rope, d.v, d.support, kScale});
    const auto backward = call("masked_mha_backward", {d.dout, forward[0], forward[1], d.q,
                                                       d.k_nope, d.k_rope, d.v, d.support, kScale});
    return {forward[0], forward[1], backward[0], backward[1], backward[2], backward[3]};
  }

  void set_support(Data& data) const {
    const int64_t keys = data.seen.size(2), words = (keys + 31) / 32;
    const at::Tensor padded = at::constant_pad_nd(data.seen, {0, words * 32 - keys}, 1);
    const at::Tensor bits = padded.to(at::kLong).unflatten(2, {words, 32});
    const at::Tensor value = at::ones({32}, at::kLong).__lshift__(at::arange(32));
    data.support = (bits * value).sum(-1).to(at::kInt).to(GetParam().device);
  }
};

TEST_P(MaskedMhaOp, MatchesFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const Shape& shape : kShapes) {
      const Data d = data(shape, dtype);
      const Expected want = oracle(d);
      const Result got = run(d);
      expect_close("masked_mha.out", got.out, want.value.out.detach(), want.scale.out);
      expect_close("masked_mha.lse", got.lse, want.value.lse.detach(), want.scale.lse);
      expect_close("masked_mha.dq", got.dq, want.value.dq, want.scale.dq);
      expect_close("masked_mha.dk_nope", got.dk_nope, want.value.dk_nope, want.scale.dk_nope);
      expect_close("masked_mha.dk_rope", got.dk_rope, want.value.dk_rope, want.scale.dk_rope);
      expect_close("masked_mha.dv", got.dv, want.value.dv, want.scale.dv);
    }
  }
}

/// All results of one attention over a latent [B,T,R], in both forms.
struct Forms {
  at::Tensor context, dlatent, drope, dq_rope;
};

// k_nope = latent key_map^T and v = latent value_map^T, or the maps go into q and out.
TEST_P(MaskedMhaOp, AgreesWithTheAbsorbedForm) {
  constexpr int64_t kHeads = 3, kNope = 16, kRope = 8, kValue = 24, kLora = 32;
  Data d = data({2, 37, 45, kHeads, kNope, kRope, kValue}, at::kFloat);
  const at::Tensor latent = random({2, 45, kLora}, at::kFloat, 7);
  const at::Tensor key_map = random({kHeads, kNope, kLora}, at::kFloat, 8, 0.2);
  const at::Tensor value_map = random({kHeads, kValue, kLora}, at::kFloat, 9, 0.2);
  const at::Tensor dcontext = d.dout;

  d.k_nope = at::einsum("btr,hnr->bthn", {latent, key_map}).contiguous();
  d.v = at::einsum("btr,hvr->bthv", {latent, value_map}).contiguous();
  const Result mha = run(d);
  const Forms expanded{mha.out,
                       at::einsum("bthn,hnr->btr", {mha.dk_nope, key_map}) +
                           at::einsum("bthv,hvr->btr", {mha.dv, value_map}),
                       mha.dk_rope, mha.dq.narrow(-1, kNope, kRope)};

  const at::Tensor q_nope = d.q.narrow(-1, 0, kNope), q_rope = d.q.narrow(-1, kNope, kRope);
  const at::Tensor q = at::cat({at::einsum("bshn,hnr->bshr", {q_nope, key_map}), q_rope}, -1);
  const at::Tensor kv = at::cat({latent, d.k_rope}, -1);
  const at::Tensor key = at::arange(45).expand_as(d.seen);
  const at::Tensor topk = at::where(d.seen, key, -1).to(at::kInt).to(GetParam().device);
  const auto out = call("sparse_mla", {q, kv, topk, kScale, kLora});
  const at::Tensor dout = at::einsum("bshv,hvr->bshr", {dcontext, value_map}).contiguous();
  const auto gradients =
      call("sparse_mla_backward", {dout, out[0], out[1], q, kv, topk, kScale, kLora, true});
  const Forms absorbed{at::einsum("bshr,hvr->bshv", {out[0], value_map}),
                       gradients[1].narrow(-1, 0, kLora), gradients[1].narrow(-1, kLora, kRope),
                       gradients[0].narrow(-1, kLora, kRope)};

  // What each form rounds before its scores, the softmax multiplies by their spread.
  const at::Tensor k =
      at::cat({wide(d.k_nope), wide(d.k_rope).unsqueeze(2).expand({2, 45, kHeads, kRope})}, -1);
  const at::Tensor size = at::einsum("bshd,bthd->bsht", {wide(d.q).abs(), k.abs()});
  const double spread = 1 + kScale * (size * d.seen.unsqueeze(2)).max().item<double>();
  const auto expect_agreement = [&](const at::Tensor& got, const at::Tensor& other) {
    const at::Tensor want = wide(other);
    const at::Tensor rms = want.square().mean(-1, /*keepdim=*/true).sqrt();
    expect_close("masked_mha.absorbed", got, want, at::maximum(want.abs(), rms) * spread);
  };
  expect_agreement(absorbed.context, expanded.context);
  expect_agreement(absorbed.dlatent, expanded.dlatent);
  expect_agreement(absorbed.drope, expanded.drope);
  expect_agreement(absorbed.dq_rope, expanded.dq_rope);
}

TEST_P(MaskedMhaOp, TakesInputsThatAreNotContiguous) {
  const Data dense = data({2, 9, 40, 3, 8, 8, 16}, at::kFloat);
  Data loose = dense;
  for (at::Tensor* tensor :
       {&loose.q, &loose.k_nope, &loose.k_rope, &loose.v, &loose.dout, &loose.support}) {
    *tensor = strided(*tensor);
  }
  const Result want = run(dense), got = run(loose);
  expect_same_bits(got.out, want.out);
  expect_same_bits(got.lse, want.lse);
  expect_same_bits(got.dq, want.dq);
  expect_same_bits(got.dk_nope, want.dk_nope);
  expect_same_bits(got.dk_rope, want.dk_rope);
  expect_same_bits(got.dv, want.dv);
}

TEST_P(MaskedMhaOp, GivesTheSameBitsOnEveryRun) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Data d = data({2, 70, 70, 3, 8, 8, 8}, dtype);
    expect_deterministic([&] {
      const Result r = run(d);
      return std::vector<at::Tensor>{r.out, r.lse, r.dq, r.dk_nope, r.dk_rope, r.dv};
    });
  }
}

TEST_P(MaskedMhaOp, RefusesBadInput) {
  const Data d = data({2, 3, 40, 2, 8, 4, 16}, at::kFloat);
  const Result r = run(d);
  const auto refused = [&](const std::string& text, Data bad) {
    expect_refused("masked_mha: " + text, "masked_mha",
                   {bad.q, bad.k_nope, bad.k_rope, bad.v, bad.support, kScale});
  };
  Data bad = d;
  bad.q = d.q.to(at::kDouble);
  refused("q: expected float32 or bfloat16, got Double", bad);
  bad = d;
  bad.v = d.v[0];
  refused("v: expected 4 axes, got shape [40, 2, 16]", bad);
  bad = d;
  bad.k_rope = d.k_rope.to(at::kBFloat16);
  refused("k_rope: expected Float as q, got BFloat16", bad);
  bad = d;
  bad.k_nope = d.k_nope.narrow(1, 0, 39);
  refused("k_nope: expected shape [2, 40, 2, 8], got [2, 39, 2, 8]", bad);
  bad = d;
  bad.q = d.q.narrow(-1, 0, 11);
  refused("q: expected shape [2, 3, 2, 12], got [2, 3, 2, 11]", bad);
  bad = d;
  bad.k_rope = d.k_rope.narrow(-1, 0, 0);
  refused("k_rope: expected 1 element or more along the last axis, got shape [2, 40, 0]", bad);
  bad = d;
  bad.support = d.support.narrow(-1, 0, 1);
  refused("support: expected shape [2, 3, 2], got [2, 3, 1]", bad);
  bad = d;
  bad.support = d.support.to(at::kLong);
  refused("support: expected Int, got Long", bad);
  bad = d;
  bad.v = random({2, 40, 2, 257}, at::kFloat, 1);
  refused("v: expected at most 256 elements along axis -1", bad);
  expect_refused("masked_mha_backward: dout: expected shape [2, 3, 2, 16], got [2, 3, 2, 12]",
                 "masked_mha_backward",
                 {d.q, r.out, r.lse, d.q, d.k_nope, d.k_rope, d.v, d.support, kScale});
  expect_refused(
      "masked_mha_backward: lse: expected Float, got Double", "masked_mha_backward",
      {d.dout, r.out, r.lse.to(at::kDouble), d.q, d.k_nope, d.k_rope, d.v, d.support, kScale});
}

DSV32_ON_EVERY_BACKEND(MaskedMhaOp);

}  // namespace
}  // namespace dsv32::suites
