#include "src/optimized/model/layer.h"

namespace dsv32::optimized {
namespace {

using Pair = std::tuple<Tensor, Tensor>;
using Triple = std::tuple<Tensor, Tensor, Tensor>;

/// docs/spec.md 1.5: both scales of the indexer's weights.
double index_weight_scale(const ModelConfig& c) {
  return 1 / std::sqrt(static_cast<double>(c.index_n_heads * c.index_head_dim));
}

/// Per head: x [B,S,H,i] times map [H,i,o] -> [B,S,H,o].
Tensor per_head(const Tensor& x, const Tensor& map) {
  const Tensor rows = x.flatten(0, 1).transpose(0, 1);  // [H,N,i]
  return at::bmm(rows, map).transpose(0, 1).reshape({x.size(0), x.size(1), x.size(2), -1});
}

/// Gradient of such a map: [H,i,o] from x [B,S,H,i] and dy [B,S,H,o].
Tensor per_head_dmap(const Tensor& x, const Tensor& dy) {
  return at::bmm(x.flatten(0, 1).permute({1, 2, 0}), dy.flatten(0, 1).transpose(0, 1));
}

}  // namespace

Attention::Attention(const Context& ctx, int64_t layer, Weights& weights, const ChunkInputs& chunk,
                     TapFlow& flow)
    : ctx_(ctx), layer_(layer), weights_(weights), chunk_(chunk), flow_(flow) {}

Tensor Attention::rotate(const Tensor& x, bool interleaved, bool inverse) const {
  return ctx_.ops.call<Tensor(const Tensor&, const Tensor&, const Tensor&, bool, bool)>(
      "rope", x, chunk_.rope.cos, chunk_.rope.sin, interleaved, inverse);
}

/// The indexer rotates the first lanes, half-split (docs/spec.md 1.5).
Tensor Attention::rotate_first(const Tensor& x, bool inverse) const {
  return rotate(x, false, inverse);
}

Tensor Attention::key_map() {
  const ModelConfig& c = ctx_.config;
  return weight("kv_b_proj.weight")
      .unflatten(0, {c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim})
      .narrow(1, 0, c.qk_nope_head_dim);
}

Tensor Attention::value_map() {
  const ModelConfig& c = ctx_.config;
  return weight("kv_b_proj.weight")
      .unflatten(0, {c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim})
      .narrow(1, c.qk_nope_head_dim, c.v_head_dim);
}

/// Multiplications per query and head: the latent is wide but few keys are gathered; heads of their
/// own are narrow but every visible key is met.
bool Attention::use_absorbed(int64_t T) const {
  const ModelConfig& c = ctx_.config;
  if (ctx_.fp8) return false;  // the absorbed form rounds elsewhere
  if (ctx_.options.attention != AttentionForm::automatic)
    return ctx_.options.attention == AttentionForm::absorbed;
  if (ctx_.dense_attention()) return false;
  const int64_t visible = std::max<int64_t>(T / 2, 1);
  const int64_t expanded = visible * (c.qk_head_dim() + c.v_head_dim);
  const int64_t absorbed = c.index_topk * (2 * c.kv_lora_rank + c.qk_rope_head_dim);
  return absorbed < expanded;
}

Tensor Attention::forward(const Tensor& x, KeyCache& cache, Tensor& kl_sum, AttentionState& state) {
  const ModelConfig& c = ctx_.config;
  state.x = x;
  state.q = rms_norm(ctx_, project(x, "q_a_proj.weight"), weight("q_a_layernorm.weight"));
  const Tensor q_latent = put("q_latent", state.q.y);
  const Tensor kv = project(x, "kv_a_proj_with_mqa.weight");
  state.kv = rms_norm(ctx_, kv.narrow(-1, 0, c.kv_lora_rank).contiguous(),
                      weight("kv_a_layernorm.weight"));
  const Tensor kv_latent = put("kv_latent", ctx_.fp8 ? through_fp8(ctx_, state.kv.y) : state.kv.y);
  const Tensor q =
      project(q_latent, "q_b_proj.weight").unflatten(-1, {c.num_attention_heads, c.qk_head_dim()});
  state.q_nope = put("q_nope", q.narrow(-1, 0, c.qk_nope_head_dim).contiguous());
  state.q_rope =
      put("q_rope",
          rotate(q.narrow(-1, c.qk_nope_head_dim, c.qk_rope_head_dim).contiguous(), true, false));
  const Tensor k_rope =
      put("k_rope",
          rotate(kv.narrow(-1, c.kv_lora_rank, c.qk_rope_head_dim).contiguous(), true, false));
  const Indexed indexed = index(x, q_latent, cache, state);
  state.topk = indexed.topk;
  state.keys = append(cache.kv, at::cat({kv_latent, k_rope}, -1));
  state.absorbed = use_absorbed(state.keys.size(1));
  if (state.absorbed) {
    attend_absorbed(state);
  } else {
    attend_expanded(state);
  }
  if (ctx_.trains_indexer()) {
    add_kl(indexed, kl_sum, state);
  } else {  // nothing goes back through the indexer
    state.ix_q = state.ix_k = state.ix_weights = state.ix_k_raw = Tensor();
  }
  if (!state.absorbed) state.q_nope = state.q_rope = Tensor();  // they are in q_used
  state.context = put("attn.ctx", state.context);
  return put("attn.out", project(state.context.flatten(-2), "o_proj.weight"));
}

Tensor Attention::append(Tensor& cache, const Tensor& fresh) const {
  if (!cache.defined()) return cache = fresh;  // the only chunk
  ctx_.ops.call<void(const Tensor&, const Tensor&, int64_t)>("cache_append", cache, fresh,
                                                             chunk_.first_query);
  return cache.narrow(1, 0, chunk_.first_query + fresh.size(1));
}

Attention::Indexed Attention::index(const Tensor& x, const Tensor& q_latent, KeyCache& cache,
                                    AttentionState& state) {
  const ModelConfig& c = ctx_.config;
  const std::string tap = layer_tap(layer_, "topk");
  if (flow_.replaying() && !ctx_.trains_indexer()) {
    if (ctx_.dense_attention()) return {};
    return {visible_topk(flow_.decision(tap).to(at::kInt)), {}};
  }
  const Tensor q =
      project(q_latent, "indexer.wq_b.weight").unflatten(-1, {c.index_n_heads, c.index_head_dim});
  state.ix_q = put("ix.q", rotate_first(q, false));
  state.ix_k_raw = project(x, "indexer.wk.weight");
  const auto [k, mean, rstd] =
      ctx_.ops.call<Triple(const Tensor&, const Tensor&, const Tensor&, double)>(
          "layer_norm", state.ix_k_raw, weight("indexer.k_norm.weight"),
          weight("indexer.k_norm.bias"), kIndexNormEps);
  state.ix_k_mean = mean;
  state.ix_k_rstd = rstd;
  const Tensor fresh = put("ix.k", rotate_first(k, false));
  const Tensor raw =
      linear(x.to(at::kFloat), weights_.exact("self_attn.indexer.weights_proj.weight"));
  state.ix_weights = put("ix.weights", raw * index_weight_scale(c));
  state.ix_k = append(cache.ix_k, fresh);
  const Tensor scores =
      put("ix.scores", ctx_.fp8 ? fp8_index_scores(state)
                                : index_scores(state.ix_q, state.ix_k, state.ix_weights));
  if (ctx_.dense_attention() && flow_.replaying()) return {{}, scores};
  const Tensor topk = flow_.replaying()
                          ? flow_.decision(tap)
                          : flow_.decide(tap, ctx_.ops
                                                  .call<Tensor(const Tensor&, int64_t, bool)>(
                                                      "select_topk", scores, c.index_topk, false)
                                                  .to(at::kLong));
  if (ctx_.dense_attention()) return {{}, scores};
  return {visible_topk(topk.to(at::kInt)), scores};
}

Tensor Attention::index_scores(const Tensor& q, const Tensor& k, const Tensor& weights) const {
  return ctx_.ops.call<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t)>(
      "index_scores", q, k, weights, chunk_.mask, chunk_.first_query);
}

/// s_k sum_j relu(q8_j . k8) (w_j s_q,j). docs/spec.md 1, fp8 mode.
Tensor Attention::fp8_index_scores(const AttentionState& state) const {
  const int64_t size = ctx_.config.index_head_dim;
  const auto codes_of = [&](const Tensor& x) {
    const Tensor rotated = ctx_.ops.call<Tensor(const Tensor&, double)>(
        "hadamard", x.to(at::kFloat), 1 / std::sqrt(static_cast<double>(size)));
    return quantize(ctx_, rotated.to(at::kBFloat16), size);
  };
  const Quantized q = codes_of(state.ix_q), k = codes_of(state.ix_k);
  const Tensor scores =
      index_scores(values_of(q.codes), values_of(k.codes), state.ix_weights * q.scales.squeeze(-1));
  return scores * k.scales.squeeze(-1).unsqueeze(1);
}

/// A decision that was handed in may name a key that its query does not see.
Tensor Attention::visible_topk(const Tensor& topk) const {
  const int64_t S = topk.size(1);
  const Tensor query =
      at::arange(chunk_.first_query, chunk_.first_query + S, topk.options()).view({1, S, 1});
  const Tensor key = topk.clamp_min(0).to(at::kLong);
  const Tensor padding = chunk_.mask.unsqueeze(1).expand({-1, S, -1}).gather(-1, key).logical_not();
  return topk.masked_fill((topk > query).logical_or_(padding), -1);
}

void Attention::attend_expanded(AttentionState& state) {
  const ModelConfig& c = ctx_.config;
  const int64_t T = state.keys.size(1), S = state.q_nope.size(1);
  const Tensor expanded =
      project(state.keys.narrow(-1, 0, c.kv_lora_rank), "kv_b_proj.weight")
          .unflatten(-1, {c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim});
  state.k_nope = expanded.narrow(-1, 0, c.qk_nope_head_dim).contiguous();
  state.value = expanded.narrow(-1, c.qk_nope_head_dim, c.v_head_dim).contiguous();
  state.k_rope = state.keys.narrow(-1, c.kv_lora_rank, c.qk_rope_head_dim).contiguous();
  state.q_used = at::cat({state.q_nope, state.q_rope}, -1);
  state.support = state.topk.defined()
                      ? ctx_.ops.call<Tensor(const Tensor&, int64_t)>("support_bits", state.topk, T)
                      : ctx_.ops.call<Tensor(const Tensor&, int64_t, int64_t)>(
                            "visible_bits", chunk_.mask, S, chunk_.first_query);
  std::tie(state.out, state.lse) =
      ctx_.ops.call<Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                         double)>("masked_mha", state.q_used, state.k_nope, state.k_rope,
                                  state.value, state.support, softmax_scale(c));
  state.context = state.out;
}

Tensor Attention::absorbed_query(const AttentionState& state) {
  return at::cat({per_head(state.q_nope, key_map()), state.q_rope}, -1);
}

void Attention::attend_absorbed(AttentionState& state) {
  const ModelConfig& c = ctx_.config;
  state.q_used = absorbed_query(state);
  if (state.topk.defined()) {
    std::tie(state.out, state.lse) =
        ctx_.ops.call<Pair(const Tensor&, const Tensor&, const Tensor&, double, int64_t)>(
            "sparse_mla", state.q_used, state.keys, state.topk, softmax_scale(c), c.kv_lora_rank);
  } else {
    std::tie(state.out, state.lse) =
        ctx_.ops.call<Pair(const Tensor&, const Tensor&, const Tensor&, int64_t, double, int64_t)>(
            "dense_mla", state.q_used, state.keys, chunk_.mask, chunk_.first_query,
            softmax_scale(c), c.kv_lora_rank);
  }
  state.context = per_head(state.out, value_map().transpose(1, 2));
}

void Attention::add_kl(const Indexed& indexed, Tensor& kl_sum, AttentionState& state) {
  using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  const double scale = softmax_scale(ctx_.config);
  const Tensor q = state.absorbed ? state.q_used : absorbed_query(state);
  const bool sparse = state.topk.defined();
  auto [target, student, rows, dscores] =
      sparse ? ctx_.ops.call<Four(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor&, double)>("kl_sparse", q, state.keys, state.lse,
                                                          indexed.scores, state.topk, scale)
             : ctx_.ops.call<Four(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor&, int64_t, double)>(
                   "kl_dense", q, state.keys, state.lse, indexed.scores, chunk_.mask,
                   chunk_.first_query, scale);
  state.dscores = dscores;
  if (!flow_.replaying()) {
    put("kl.target", on_all_keys(target, state));
    put("kl.student", on_all_keys(student, state));
    put("kl.dscores", on_all_keys(dscores, state));
  }
  rows = put("kl.rows", rows);
  const Tensor sum = (rows * chunk_.valid).sum();
  kl_sum = kl_sum.defined() ? kl_sum + sum : sum;
}

/// Values of the selected keys [B,S,K] at their places in [B,S,T], zeros elsewhere.
Tensor Attention::on_all_keys(const Tensor& values, const AttentionState& state) const {
  if (!state.topk.defined()) return values;
  const int64_t T = state.keys.size(1);
  const Tensor place = state.topk.to(at::kLong);
  const Tensor padded = at::zeros({place.size(0), place.size(1), T + 1}, values.options());
  return padded.scatter(-1, place.masked_fill(place < 0, T), values).narrow(-1, 0, T);
}

Tensor Attention::backward(const Tensor& dout, double kl_scale, const AttentionState& state,
                           const KeepGradient& keep) {
  if (ctx_.trains_indexer()) indexer_backward(kl_scale, state, keep);
  if (!dout.defined()) return {};
  const ModelConfig& c = ctx_.config;
  const auto keep_own = [&](const std::string& name, const Tensor& g) {
    keep("self_attn." + name, g);
  };
  keep_own("o_proj.weight", linear_dweight(dout, state.context.flatten(-2)));
  const Tensor dcontext = linear_dx(dout, weight("o_proj.weight")).view_as(state.context);
  put_slope("attn.ctx", dcontext);
  const KernelGradients d = state.absorbed ? absorbed_backward(dcontext, state, keep_own)
                                           : expanded_backward(dcontext, state, keep_own);
  put_slope("q_nope", d.dq_nope);
  put_slope("q_rope", d.dq_rope);
  put_slope("kv_latent", d.dkeys.narrow(-1, 0, c.kv_lora_rank));
  put_slope("k_rope", d.dkeys.narrow(-1, c.kv_lora_rank, c.qk_rope_head_dim));
  const Tensor dq = at::cat({d.dq_nope, rotate(d.dq_rope, true, true)}, -1).flatten(-2);
  keep_own("q_b_proj.weight", linear_dweight(dq, state.q.y));
  const Tensor dq_latent = linear_dx(dq, weight("q_b_proj.weight"));
  put_slope("q_latent", dq_latent);
  const Tensor dq_raw = rms_norm_backward(ctx_, dq_latent, state.q, weight("q_a_layernorm.weight"),
                                          {}, "q_a_layernorm.weight", keep_own);
  keep_own("q_a_proj.weight", linear_dweight(dq_raw, state.x));
  const Tensor dlatent =
      rms_norm_backward(ctx_, d.dkeys.narrow(-1, 0, c.kv_lora_rank).contiguous(), state.kv,
                        weight("kv_a_layernorm.weight"), {}, "kv_a_layernorm.weight", keep_own);
  const Tensor dk_rope =
      rotate(d.dkeys.narrow(-1, c.kv_lora_rank, c.qk_rope_head_dim).contiguous(), true, true);
  const Tensor dkv = at::cat({dlatent, dk_rope}, -1);
  keep_own("kv_a_proj_with_mqa.weight", linear_dweight(dkv, state.x));
  return linear_dx(dq_raw, weight("q_a_proj.weight")) +
         linear_dx(dkv, weight("kv_a_proj_with_mqa.weight"));
}

Attention::KernelGradients Attention::expanded_backward(const Tensor& dcontext,
                                                        const AttentionState& state,
                                                        const KeepGradient& keep) {
  const ModelConfig& c = ctx_.config;
  const auto [dq, dk_nope, dk_rope, dv] = ctx_.ops.call<std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
      const Tensor&, const Tensor&, double)>("masked_mha_backward", dcontext, state.out, state.lse,
                                             state.q_used, state.k_nope, state.k_rope, state.value,
                                             state.support, softmax_scale(c));
  const Tensor dexpanded = at::cat({dk_nope, dv}, -1).flatten(-2);
  const Tensor latent = state.keys.narrow(-1, 0, c.kv_lora_rank);
  keep("kv_b_proj.weight", linear_dweight(dexpanded, latent));
  const Tensor dlatent = linear_dx(dexpanded, weight("kv_b_proj.weight"));
  return {dq.narrow(-1, 0, c.qk_nope_head_dim),
          dq.narrow(-1, c.qk_nope_head_dim, c.qk_rope_head_dim).contiguous(),
          at::cat({dlatent, dk_rope}, -1)};
}

Attention::KernelGradients Attention::absorbed_backward(const Tensor& dcontext,
                                                        const AttentionState& state,
                                                        const KeepGradient& keep) {
  const ModelConfig& c = ctx_.config;
  const Tensor dvalue_map = per_head_dmap(dcontext, state.out);  // [H,v,kv_lora]
  const Tensor dout = per_head(dcontext, value_map());
  const double scale = softmax_scale(c);
  const auto [dq, dkeys] =
      state.topk.defined()
          ? ctx_.ops.call<Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const Tensor&, const Tensor&, double, int64_t, bool)>(
                "sparse_mla_backward", dout, state.out, state.lse, state.q_used, state.keys,
                state.topk, scale, c.kv_lora_rank, true)
          : ctx_.ops.call<Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                               const Tensor&, const Tensor&, int64_t, double, int64_t, bool)>(
                "dense_mla_backward", dout, state.out, state.lse, state.q_used, state.keys,
                chunk_.mask, chunk_.first_query, scale, c.kv_lora_rank, true);
  const Tensor dq_latent = dq.narrow(-1, 0, c.kv_lora_rank);
  const Tensor dkey_map = per_head_dmap(state.q_nope, dq_latent);  // [H,nope,kv_lora]
  keep("kv_b_proj.weight", at::cat({dkey_map, dvalue_map}, 1).flatten(0, 1));
  return {per_head(dq_latent, key_map().transpose(1, 2)),
          dq.narrow(-1, c.kv_lora_rank, c.qk_rope_head_dim).contiguous(), dkeys};
}

/// The KL's own path: hidden state and q_latent are detached, so it ends at the five tensors.
void Attention::indexer_backward(double kl_scale, const AttentionState& state,
                                 const KeepGradient& keep) {
  const auto keep_own = [&](const std::string& name, const Tensor& g) {
    keep("self_attn.indexer." + name, g);
  };
  const Tensor dscores = state.dscores * (chunk_.valid.to(at::kFloat) * kl_scale).unsqueeze(-1);
  const auto [dq, dk, dweights] =
      state.topk.defined()
          ? ctx_.ops.call<Triple(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                 const Tensor&)>("index_scores_backward_sparse", dscores,
                                                 state.topk, state.ix_q, state.ix_k,
                                                 state.ix_weights)
          : ctx_.ops.call<Triple(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                 const Tensor&, int64_t)>("index_scores_backward", dscores,
                                                          state.ix_q, state.ix_k, state.ix_weights,
                                                          chunk_.mask, chunk_.first_query);
  put_slope("ix.q", dq);
  put_slope("ix.k", dk);
  put_slope("ix.weights", dweights);
  put_slope("ix.scores", on_all_keys(dscores, state));
  keep_own("wq_b.weight", linear_dweight(rotate_first(dq, true).flatten(-2), state.q.y));
  const auto [dk_raw, dnorm, dbias] =
      ctx_.ops
          .call<Triple(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&)>(
              "layer_norm_backward", rotate_first(dk, true), state.ix_k_raw,
              weight("indexer.k_norm.weight"), state.ix_k_mean, state.ix_k_rstd);
  keep_own("wk.weight", linear_dweight(dk_raw, state.x));
  keep_own("k_norm.weight", dnorm);
  keep_own("k_norm.bias", dbias);
  keep_own("weights_proj.weight",
           linear_dweight(dweights * index_weight_scale(ctx_.config), state.x.to(at::kFloat)));
}

}  // namespace dsv32::optimized
