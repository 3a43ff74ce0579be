// bench_ops: indexer, selection, attention in both forms, KL. Every position is visible, so that
// each query sees a key. The compositions are what eager PyTorch does with a selection: products of
// every query with every key, hidden ones masked.

#include <algorithm>
#include <cmath>
#include <limits>

#include "measure/bench_ops.h"

namespace dsv32::suites {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kHidden = -1e30;  // logit of a key that is not seen
const std::vector<at::ScalarType> kBoth = {at::kFloat, at::kBFloat16};

double pairs(const Setting& s, int64_t most) {
  double sum = 0;
  for (int64_t i = 1; i <= s.S; ++i) sum += static_cast<double>(std::min(i, most));
  return sum * static_cast<double>(s.B);
}

/// (query, key) in [B,S,T] that are visible, or selected.
double visible_pairs(const Setting& s) { return pairs(s, s.S); }
double selected_pairs(const Setting& s) { return pairs(s, s.config.index_topk); }

Work products(double pairs, int64_t heads, int64_t multiplications) {
  return {.flops = 2 * pairs * static_cast<double>(heads * multiplications)};
}

/// [1,S,T]: key is not after query.
Tensor causal(const Setting& s) { return at::ones({1, s.S, s.S}, at::kBool).tril(); }

/// [B,S,T]: key stands in topk [B,S,K].
Tensor listed(const Tensor& topk, int64_t keys) {
  const Tensor place = topk.to(at::kLong);
  const Tensor padded = at::zeros({topk.size(0), topk.size(1), keys + 1}, at::kBool);
  return padded.scatter(-1, place.masked_fill(place < 0, keys), true).narrow(-1, 0, keys);
}

Tensor all_visible(const Setting& s) { return at::ones({s.B, s.S}, at::kBool); }

// --- indexer ------------------------------------------------------------------------------------

struct Indexer {
  Tensor q, k, weights, mask;

  explicit Indexer(const Setting& s)
      : q(s.normal({s.B, s.S, s.config.index_n_heads, s.config.index_head_dim})),
        k(s.normal({s.B, s.S, s.config.index_head_dim})),
        weights(at::randn({s.B, s.S, s.config.index_n_heads})),
        mask(all_visible(s)) {}
  Tensor scores() const { return call_op("index_scores", {q, k, weights, mask, 0})[0]; }
  Tensor topk(const Setting& s) const {
    return call_op("select_topk", {scores(), s.config.index_topk, false})[0];
  }
};

/// [B,S,T], not masked: makes [B,S,H_I,T].
Tensor eager_scores(const Tensors& in) {
  const Tensor &q = in[0], &k = in[1], &weights = in[2];
  const Tensor products = at::matmul(q.flatten(1, 2), k.transpose(1, 2)).to(at::kFloat);
  const Tensor heads = products.view({q.size(0), q.size(1), q.size(2), k.size(1)});
  return (heads.relu() * weights.unsqueeze(-1)).sum(2);
}

OpCase index_scores(const Setting& s) {
  const Indexer x(s);
  const Tensor hidden = causal(s).logical_not();
  return {.size = size_of(x.q),
          .work = products(visible_pairs(s), x.q.size(2), x.q.size(3)),  // q k
          .arguments = {x.q, x.k, x.weights, x.mask, 0},
          .composition = [=] {
            return Tensors{eager_scores({x.q, x.k, x.weights}).masked_fill(hidden, -kInf)};
          }};
}

OpCase index_scores_backward(const Setting& s) {
  const Indexer x(s);
  const Tensor dscores = at::randn({s.B, s.S, s.S}), hidden = causal(s).logical_not();
  const auto forward = [hidden](const Tensors& in) {
    return Tensors{eager_scores(in).masked_fill(hidden, 0)};
  };
  return {.size = size_of(x.q),
          .work = products(visible_pairs(s), x.q.size(2), 3 * x.q.size(3)),  // q k again, dq, dk
          .arguments = {dscores, x.q, x.k, x.weights, x.mask, 0},
          .composition = autograd_of(forward, {x.q, x.k, x.weights}, {dscores})};
}

OpCase index_scores_backward_sparse(const Setting& s) {
  const Indexer x(s);
  const Tensor topk = x.topk(s);
  const Tensor dscores = at::randn(topk.sizes()).masked_fill(topk < 0, 0);
  const auto forward = [key = topk.to(at::kLong).clamp_min(0)](const Tensors& in) {
    return Tensors{eager_scores(in).gather(-1, key)};
  };
  return {.size = size_of(x.q),
          .work = products(selected_pairs(s), x.q.size(2), 3 * x.q.size(3)),  // q k again, dq, dk
          .arguments = {dscores, topk, x.q, x.k, x.weights},
          .composition = autograd_of(forward, {x.q, x.k, x.weights}, {dscores})};
}

/// torch.topk leaves its own order, so nothing is compared.
OpCase select_topk(const Setting& s) {
  const Tensor scores = Indexer(s).scores();
  const int64_t k = s.config.index_topk, most = std::min(k, s.S);
  const auto read = static_cast<double>(scores.numel() * sizeof(float));
  const auto written = static_cast<double>(s.tokens() * k) * sizeof(int32_t);
  return {.size = size_of(scores),
          .work = {.bytes = read + written},
          .arguments = {scores, k, false},
          .composition = [=] {
            const auto [value, key] = scores.topk(most, -1, /*largest=*/true, /*sorted=*/false);
            key.masked_fill_(value.isneginf(), -1);
            return Tensors{};
          }};
}

OpCase support_bits(const Setting& s) {
  const Tensor topk = Indexer(s).topk(s);
  const auto read = static_cast<double>(topk.numel() * sizeof(int32_t));
  return {.size = size_of(topk),
          .work = {.bytes = read + static_cast<double>(s.tokens() * s.S) / 8},
          .arguments = {topk, s.S},
          .composition = [topk, keys = s.S] {
            listed(topk, keys);  // a mask of bytes is what eager code makes
            return Tensors{};
          }};
}

OpCase visible_bits(const Setting& s) {
  const Tensor mask = all_visible(s);
  return {.size = size_of(mask),
          .work = {.bytes = static_cast<double>(s.tokens() * s.S) / 8},
          .arguments = {mask, s.S, 0},
          .composition = [mask, s] {
            causal(s).logical_and(mask.unsqueeze(1));
            return Tensors{};
          }};
}

// --- attention, absorbed form
// ---------------------------------------------------------------------

struct Absorbed {
  Tensor q, kv;
  int64_t lora;
  double scale;

  explicit Absorbed(const Setting& s)
      : q(s.normal({s.B, s.S, s.config.num_attention_heads,
                    s.config.kv_lora_rank + s.config.qk_rope_head_dim})),
        kv(s.normal({s.B, s.S, q.size(3)})),
        lora(s.config.kv_lora_rank),
        scale(1 / std::sqrt(static_cast<double>(s.config.qk_head_dim()))) {}
  Tensor dout(const Setting& s) const { return s.normal({s.B, s.S, q.size(2), lora}); }
  Tensors sparse(const Tensor& topk) const {
    return call_op("sparse_mla", {q, kv, topk, scale, lora});
  }
  Tensors dense(const Tensor& mask) const {
    return call_op("dense_mla", {q, kv, mask, 0, scale, lora});
  }
  /// Scaled logits [B,S,H,T].
  static Tensor logits(const Tensor& q, const Tensor& kv, double scale) {
    const Tensor products = at::matmul(q.flatten(1, 2), kv.transpose(1, 2)) * scale;
    return products.view({q.size(0), q.size(1), q.size(2), kv.size(1)});
  }
  /// Softmax in float32, as modelling code has it. seen: [B or 1,S,T].
  Tensors eager(const Tensors& in, const Tensor& seen) const {
    const Tensor hidden = seen.logical_not().unsqueeze(2);
    const Tensor masked = logits(in[0], in[1], scale).masked_fill(hidden, kHidden);
    const Tensor probs = at::softmax(masked, -1, at::kFloat).to(in[0].scalar_type());
    const Tensor out = at::matmul(probs.flatten(1, 2), in[1].narrow(-1, 0, lora));
    return {out.view({q.size(0), q.size(1), q.size(2), lora})};
  }
};

// Multiplications per query, key and head: q kv, p v; backward: q kv again, dout v, dq, dk, dv.
int64_t absorbed_forward(const Absorbed& a) { return a.q.size(3) + a.lora; }
int64_t absorbed_backward(const Absorbed& a) { return 3 * a.q.size(3) + 2 * a.lora; }

OpCase sparse_mla(const Setting& s) {
  const Absorbed a(s);
  const Tensor topk = Indexer(s).topk(s);
  return {.size = size_of(a.q) + ", top " + std::to_string(topk.size(-1)),
          .work = products(selected_pairs(s), a.q.size(2), absorbed_forward(a)),
          .arguments = {a.q, a.kv, topk, a.scale, a.lora},
          .composition = [=] {
            return a.eager({a.q, a.kv}, listed(topk, a.kv.size(1)));
          }};
}

OpCase sparse_mla_backward(const Setting& s) {
  const Absorbed a(s);
  const Tensor topk = Indexer(s).topk(s), dout = a.dout(s);
  const Tensors out = a.sparse(topk);
  const auto forward = [=](const Tensors& in) { return a.eager(in, listed(topk, in[1].size(1))); };
  return {.size = size_of(a.q) + ", top " + std::to_string(topk.size(-1)),
          .work = products(selected_pairs(s), a.q.size(2), absorbed_backward(a)),
          .arguments = {dout, out[0], out[1], a.q, a.kv, topk, a.scale, a.lora, true},
          .composition = autograd_of(forward, {a.q, a.kv}, {dout})};
}

OpCase dense_mla(const Setting& s) {
  const Absorbed a(s);
  return {.size = size_of(a.q),
          .work = products(visible_pairs(s), a.q.size(2), absorbed_forward(a)),
          .arguments = {a.q, a.kv, all_visible(s), 0, a.scale, a.lora},
          .composition = [a, seen = causal(s)] {
            return a.eager({a.q, a.kv}, seen);
          }};
}

OpCase dense_mla_backward(const Setting& s) {
  const Absorbed a(s);
  const Tensor mask = all_visible(s), dout = a.dout(s);
  const Tensors out = a.dense(mask);
  const auto forward = [a, seen = causal(s)](const Tensors& in) { return a.eager(in, seen); };
  return {.size = size_of(a.q),
          .work = products(visible_pairs(s), a.q.size(2), absorbed_backward(a)),
          .arguments = {dout, out[0], out[1], a.q, a.kv, mask, 0, a.scale, a.lora, true},
          .composition = autograd_of(forward, {a.q, a.kv}, {dout})};
}

// --- attention, expanded form
// ---------------------------------------------------------------------

struct Expanded {
  Tensor q, k_nope, k_rope, v, topk, support;
  double scale;

  explicit Expanded(const Setting& s)
      : q(s.normal({s.B, s.S, s.config.num_attention_heads, s.config.qk_head_dim()})),
        k_nope(s.normal({s.B, s.S, q.size(2), s.config.qk_nope_head_dim})),
        k_rope(s.normal({s.B, s.S, s.config.qk_rope_head_dim})),
        v(s.normal({s.B, s.S, q.size(2), s.config.v_head_dim})),
        topk(Indexer(s).topk(s)),
        support(call_op("support_bits", {topk, s.S})[0]),
        scale(1 / std::sqrt(static_cast<double>(q.size(3)))) {}
};

Tensors eager_mha(const Tensors& in, const Tensor& seen, double scale) {
  const Tensor &q = in[0], &k_nope = in[1], &k_rope = in[2], &v = in[3];
  const Tensor shared = k_rope.unsqueeze(2).expand({-1, -1, q.size(2), -1});
  const Tensor k = at::cat({k_nope, shared}, -1).permute({0, 2, 3, 1});  // [B,H,d,T]
  const Tensor hidden = seen.logical_not().unsqueeze(1);
  const Tensor masked =
      (at::matmul(q.transpose(1, 2), k) * scale).masked_fill(hidden, kHidden);  // [B,H,S,T]
  const Tensor probs = at::softmax(masked, -1, at::kFloat).to(q.scalar_type());
  return {at::matmul(probs, v.transpose(1, 2)).transpose(1, 2).contiguous()};
}

OpCase masked_mha(const Setting& s) {
  const Expanded e(s);
  const Tensor seen = listed(e.topk, s.S);
  return {.size = size_of(e.q) + ", top " + std::to_string(e.topk.size(-1)),
          .work = products(selected_pairs(s), e.q.size(2), e.q.size(3) + e.v.size(3)),  // q k, p v
          .arguments = {e.q, e.k_nope, e.k_rope, e.v, e.support, e.scale},
          .composition = [=] {
            return eager_mha({e.q, e.k_nope, e.k_rope, e.v}, seen, e.scale);
          }};
}

OpCase masked_mha_backward(const Setting& s) {
  const Expanded e(s);
  const Tensor dout = s.normal(e.v.sizes());
  const Tensors out = call_op("masked_mha", {e.q, e.k_nope, e.k_rope, e.v, e.support, e.scale});
  const auto forward = [seen = listed(e.topk, s.S), scale = e.scale](const Tensors& in) {
    return eager_mha(in, seen, scale);
  };
  return {.size = size_of(e.q) + ", top " + std::to_string(e.topk.size(-1)),
          .work = products(selected_pairs(s), e.q.size(2),
                           3 * e.q.size(3) + 2 * e.v.size(3)),  // q k again, dout v, dq, dk, dv
          .arguments = {dout, out[0], out[1], e.q, e.k_nope, e.k_rope, e.v, e.support, e.scale},
          .composition = autograd_of(forward, {e.q, e.k_nope, e.k_rope, e.v}, {dout})};
}

// --- KL -----------------------------------------------------------------------------------------

/// target, student, rows, dscores over all keys (docs/spec.md 2). seen: [B or 1,S,T].
Tensors eager_kl(const Absorbed& a, const Tensor& lse, const Tensor& scores, const Tensor& seen) {
  const Tensor hidden = seen.logical_not();
  const Tensor logits = Absorbed::logits(a.q, a.kv, a.scale).to(at::kFloat);
  const Tensor mass = (logits - lse.unsqueeze(-1)).exp().sum(2).masked_fill(hidden, 0);
  const Tensor target = mass / mass.sum(-1, /*keepdim=*/true);
  const Tensor log_student = at::log_softmax(scores.masked_fill(hidden, -kInf), -1);
  const Tensor student = log_student.exp();
  const Tensor rows =
      (at::xlogy(target, target) - target * log_student.masked_fill(hidden, 0)).sum(-1);
  return {target, student, rows, student - target};
}

// Multiplications per query, key and head: q kv again.
OpCase kl_sparse(const Setting& s) {
  const Absorbed a(s);
  const Indexer x(s);
  const Tensor scores = x.scores(), topk = x.topk(s), lse = a.sparse(topk)[1];
  return {.size = size_of(a.q) + ", top " + std::to_string(topk.size(-1)),
          .work = products(selected_pairs(s), a.q.size(2), a.q.size(3)),
          .arguments = {a.q, a.kv, lse, scores, topk, a.scale},
          .composition = [=] {
            Tensors all = eager_kl(a, lse, scores, listed(topk, a.kv.size(1)));
            const Tensor key = topk.to(at::kLong).clamp_min(0), padding = topk < 0;
            for (const size_t i : {0, 1, 3})
              all[i] = all[i].gather(-1, key).masked_fill(padding, 0);
            return all;
          }};
}

OpCase kl_dense(const Setting& s) {
  const Absorbed a(s);
  const Tensor scores = Indexer(s).scores(), mask = all_visible(s), lse = a.dense(mask)[1];
  return {.size = size_of(a.q),
          .work = products(visible_pairs(s), a.q.size(2), a.q.size(3)),
          .arguments = {a.q, a.kv, lse, scores, mask, 0, a.scale},
          .composition = [=, seen = causal(s)] { return eager_kl(a, lse, scores, seen); }};
}

}  // namespace

std::vector<OpEntry> attention_ops() {
  return {
      {"index_scores", "", kBoth, index_scores},
      {"index_scores_backward", "", kBoth, index_scores_backward},
      {"index_scores_backward_sparse", "", kBoth, index_scores_backward_sparse},
      {"select_topk", "", {at::kFloat}, select_topk},
      {"support_bits", "", {at::kFloat}, support_bits},
      {"visible_bits", "", {at::kFloat}, visible_bits},
      {"sparse_mla", "", kBoth, sparse_mla},
      {"sparse_mla_backward", "", kBoth, sparse_mla_backward},
      {"dense_mla", "", kBoth, dense_mla},
      {"dense_mla_backward", "", kBoth, dense_mla_backward},
      {"masked_mha", "", kBoth, masked_mha},
      {"masked_mha_backward", "", kBoth, masked_mha_backward},
      {"kl_sparse", "", kBoth, kl_sparse},
      {"kl_dense", "", kBoth, kl_dense},
  };
}

std::vector<std::string> growing_ops() {
  return {"sparse_mla", "sparse_mla_backward", "index_scores_backward_sparse", "index_scores",
          "select_topk"};
}

}  // namespace dsv32::suites
