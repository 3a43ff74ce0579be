#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "src/reference/layer.h"

/// A layer in the pieces that its forward and its backward pass are made of.
namespace dsv32::reference {

inline double eps_or(double variant, double fallback) { return variant > 0 ? variant : fallback; }

/// Appends this chunk's keys [B,S,D] to the cache and returns all keys [B,T,D].
inline Tensor append(const CacheVariant& variant, Tensor& cached, const Tensor& fresh) {
  const Tensor earlier = cached;
  cached = earlier.defined() ? torch::cat({earlier, fresh}, 1) : fresh;
  if (!earlier.defined() || !variant.other_row) return cached;
  return torch::cat({earlier.roll(-1, 0), fresh}, 1);
}

/// The block norm reads the unrounded residual sum (docs/spec.md 1.2); transformers reads the
/// rounded one.
inline Tensor norm_input(const Context& ctx, const Residual& residual) {
  const bool unrounded = ctx.rounding.is_16bit() && !ctx.rounding.like_transformers();
  return unrounded ? residual.sum : residual.hidden;
}

/// A latent's norm, unless a variant leaves it out.
inline Tensor latent_norm(const Context& ctx, const Tensor& x, const Tensor& weight, double eps,
                          bool missing) {
  return missing ? x : rms_norm(ctx, x, weight, eps);
}

/// What the indexer gives.
struct Indexed {
  Tensor support;  // [B,1|H,S,T] bool: keys that attention may use
  Tensor scores;   // [B,S,T]; undefined where nobody reads them
};
/// What attention reads, of all queries.
struct AttentionFront {
  AttentionOperands operands;
  Indexed indexed;
};
/// Of some queries, whose rows are computed together.
struct AttentionBlock {
  AttentionOperands operands;
  Indexed indexed;
  Tensor visible;  // [B,count,T]
  int64_t first;   // query
};
/// The router's choice.
struct Routing {
  Tensor logits, experts, weights;  // [B,S,E], [B,S,K], [B,S,K]
};

class Layer {
 public:
  Layer(const Context& ctx, int64_t layer, LayerWeights& weights, const ChunkInputs& chunk,
        LayerCache& cache, TapFlow& flow)
      : ctx_(ctx), layer_(layer), weights_(weights), chunk_(chunk), cache_(cache), flow_(flow) {}

  Residual run(const Residual& in) {
    if (const Tensor known = skip("attn_norm", "hidden"); known.defined()) return {known, known};
    return run_mlp(run_attention(in));
  }

  /// h + attention(norm(h))
  Residual run_attention(const Residual& in) {
    const Tensor known = skip("attn_norm", "attn.out");
    const Tensor x = known.defined() ? Tensor() : attention_input(in);
    const Tensor attn_out = known.defined() ? known : attention(x);

    const bool skipped = ctx_.dialect.residual.from_normed && !x.defined();
    const Tensor sum = stream_before(in, skipped ? attention_input(in) : x) + attn_out;
    return {sum, ctx_.rounding.stored(sum)};
  }

  /// h + mlp(norm(h))
  Residual run_mlp(const Residual& middle) {
    if (const Tensor end = skip("ffn_norm", "hidden"); end.defined()) return {end, end};
    const Tensor y = mlp_input(middle);
    if (const Tensor end = skip("router.logits", "hidden"); end.defined()) return {end, end};
    const Tensor out = ctx_.config.is_dense_mlp(layer_) ? dense_mlp(y) : moe(y);

    const Tensor sum = middle.hidden + out;
    return {sum, put("hidden", sum)};
  }

  void run_attention_alone(const Residual& in) { attention(attention_input(in)); }

  Tensor put(const char* tap, const Tensor& own) { return flow_.put(layer_tap(layer_, tap), own); }

  // --- the pieces of the attention --------------------------------------------------------------

  Tensor attention_input(const Residual& in) {
    const NormVariant& norm = ctx_.dialect.norm;
    const double eps = eps_or(norm.eps_block, ctx_.config.rms_norm_eps);
    return put("attn_norm", rms_norm(ctx_, norm_input(ctx_, in), weight("input_layernorm.weight"),
                                     eps_or(norm.eps_attn_norm, eps)));
  }

  /// What attn.out is added to, of a normed input x.
  Tensor stream_before(const Residual& in, const Tensor& x) const {
    return ctx_.dialect.residual.from_normed ? x : in.hidden;
  }

  Tensor attention(const Tensor& x) {
    AttentionFront front;
    if (const Tensor known = make_front(x, front); known.defined()) return known;
    const Tensor own = context_of(front);
    front = {};
    return attention_out(own);
  }

  /// Lanes of the attention at their positions.
  Tensor rotated(const Tensor& lanes, bool missing, bool reversed) const {
    if (missing) return lanes;
    return rotate(ctx_, lanes, in_sense(chunk_.rope, reversed), ctx_.dialect.rope.mla);
  }

  /// Fills `front`; a tensor in a staged run that needs nothing of it.
  Tensor make_front(const Tensor& x, AttentionFront& front) {
    const ModelConfig& c = ctx_.config;
    const NormVariant& norm = ctx_.dialect.norm;
    const Tensor q_raw = linear(ctx_, x, weight("self_attn.q_a_proj.weight"));
    const Tensor q_latent = put(
        "q_latent", latent_norm(ctx_, q_raw, weight("self_attn.q_a_layernorm.weight"),
                                eps_or(norm.eps_q_latent, c.rms_norm_eps), norm.q_latent_missing));
    const Tensor kv = linear(ctx_, x, weight("self_attn.kv_a_proj_with_mqa.weight"));
    const Tensor kv_normed = latent_norm(
        ctx_, kv.narrow(-1, 0, c.kv_lora_rank), weight("self_attn.kv_a_layernorm.weight"),
        eps_or(norm.eps_kv_latent, c.rms_norm_eps), norm.kv_latent_missing);
    const Tensor kv_latent =
        put("kv_latent", ctx_.dialect.fp8.latent ? through_fp8(ctx_, kv_normed) : kv_normed);

    Tensor q = linear(ctx_, q_latent, weight("self_attn.q_b_proj.weight"))
                   .unflatten(-1, {c.num_attention_heads, c.qk_head_dim()});
    const RopeVariant& rope = ctx_.dialect.rope;
    const bool rope_first = ctx_.dialect.attention.q_b_rope_first;
    Tensor q_nope =
        put("q_nope", q.narrow(-1, rope_first ? c.qk_rope_head_dim : 0, c.qk_nope_head_dim));
    Tensor q_rope =
        put("q_rope", rotated(q.narrow(-1, rope_first ? 0 : c.qk_nope_head_dim, c.qk_rope_head_dim),
                              rope.q_missing, rope.q_reversed));
    const Tensor k_rope = put("k_rope", rotated(kv.narrow(-1, c.kv_lora_rank, c.qk_rope_head_dim),
                                                rope.k_missing, rope.k_reversed));

    const Tensor keys = append(ctx_.dialect.cache, cache_.kv_latent, kv_latent);
    const Tensor rope_keys = append(ctx_.dialect.cache, cache_.k_rope, k_rope);
    if (const Tensor known = skip("ix.q", "attn.out"); known.defined()) return known;
    front.indexed = index_keys(x, q_raw, q_latent);

    if (const Tensor known = skip("attn.logits", "attn.out"); known.defined()) return known;
    const Weight kv_b = weight("self_attn.kv_b_proj.weight");
    q = Tensor();  // large at full size, as the operands
    front.operands =
        attention_operands(ctx_, std::move(q_nope), std::move(q_rope), keys, rope_keys, kv_b);
    return {};
  }

  /// Queries whose rows are computed together. The KL is of whole rows of all queries.
  int64_t queries_together() const {
    const int64_t B = chunk_.visible.size(0), S = chunk_.visible.size(1);
    return trains_indexer() ? S : queries_at_once(ctx_.config, B, S);
  }

  /// attn.ctx of all queries, unrounded, block by block.
  Tensor context_of(const AttentionFront& front) {
    const int64_t S = chunk_.visible.size(1), step = queries_together();
    std::vector<Tensor> contexts;
    for (int64_t first = 0; first < S; first += step)
      contexts.push_back(attend(block_of(front, first, std::min(step, S - first))));
    return contexts.size() == 1 ? contexts.front() : torch::cat(contexts, 1);
  }

  /// attn.out of an unrounded attn.ctx.
  Tensor attention_out(const Tensor& own) {
    const Tensor context = put("attn.ctx", own);
    return put("attn.out", linear(ctx_, context.flatten(-2), weight("self_attn.o_proj.weight")));
  }

  /// The attention of a block, [B,count,H,v].
  Tensor attend(const AttentionBlock& block) {
    const auto put_rows = [&](const char* tap, const Tensor& own) {
      return flow_.put_queries(layer_tap(layer_, tap), own, block.first);
    };
    const Tensor logits = put_rows(
        "attn.logits", with_scores(attention_logits(ctx_, block.operands.q, block.operands.k),
                                   block.indexed.scores, block.visible));
    const Tensor probs = put_rows(
        "attn.probs", attention_probs(ctx_, masked(logits, block.visible), block.indexed.support));
    if (trains_indexer()) add_kl(logits, probs, block.indexed);
    return attention_context(ctx_, probs, block.operands);
  }

  /// Queries [first, first + count) with the keys that some of them use.
  AttentionBlock block_of(const AttentionFront& front, int64_t first, int64_t count) const {
    const Indexed& whole = front.indexed;
    const int64_t T = keys_met(whole.support, first, count);
    const auto rows = [&](const Tensor& x, int64_t axis) {
      const Tensor some = x.defined() ? x.narrow(axis, first, count) : x;
      return some.defined() && T < some.size(-1) ? some.narrow(-1, 0, T) : some;
    };
    const auto met = [&](const Tensor& x) { return T < x.size(2) ? x.narrow(2, 0, T) : x; };
    const AttentionOperands& all = front.operands;
    return {{all.q.narrow(2, first, count), met(all.k), met(all.v), all.value_map},
            {rows(whole.support, 2), rows(whole.scores, 1)},
            rows(chunk_.visible, 1),
            first};
  }

  // --- the pieces of the MLP --------------------------------------------------------------------

  Tensor mlp_input(const Residual& middle) {
    const NormVariant& norm = ctx_.dialect.norm;
    const double eps = eps_or(norm.eps_block, ctx_.config.rms_norm_eps);
    return put("ffn_norm",
               rms_norm(ctx_, norm_input(ctx_, middle), weight("post_attention_layernorm.weight"),
                        eps_or(norm.eps_ffn_norm, eps)));
  }

  Tensor dense_mlp(const Tensor& y) {
    const MoeVariant& variant = ctx_.dialect.moe;
    return put("mlp.out", mlp(y, "mlp.", variant.swapped_dense, variant.silu_dense));
  }

  Tensor moe(const Tensor& y) {
    const Routing routing = route(y);
    const Tensor routed =
        put("moe.routed", routed_experts(ctx_, y, routing.experts, routing.weights, weights_));
    return mlp_out(routed, shared_experts(y));
  }

  Routing route(const Tensor& y) {
    const Tensor bias = weight("mlp.gate.e_score_correction_bias");
    const Tensor logits = put("router.logits", product_with_weight(ctx_.products(ProductOf::router),
                                                                   y, weight("mlp.gate.weight")));
    const std::string tap = layer_tap(layer_, "router.experts");
    const Tensor experts = flow_.replaying()
                               ? flow_.decision(tap)
                               : flow_.decide(tap, reference::route(ctx_, logits, bias));
    return {logits, experts, put("router.weights", routing_weights(ctx_, logits, bias, experts))};
  }

  Tensor shared_experts(const Tensor& y) {
    const MoeVariant& variant = ctx_.dialect.moe;
    return put("moe.shared",
               mlp(y, "mlp.shared_experts.", variant.swapped_shared, variant.silu_shared));
  }

  Tensor mlp_out(const Tensor& routed, const Tensor& shared) {
    return put("mlp.out", ctx_.dialect.moe.shared_missing ? routed : routed + scaled(shared));
  }

 private:
  /// What a staged run need not compute. 16-bit norms read sums that no tap holds, and the KL is
  /// made on the way.
  Tensor skip(const char* first, const char* last) const {
    if (ctx_.rounding.is_16bit() || trains_indexer()) return {};
    return flow_.skip(layer_, first, last);
  }
  Weight weight(const std::string& name) { return weights_.get(name); }

  /// Keys from the first on, of which the later ones are used by none of these queries. All of them
  /// where the queries are no block.
  static int64_t keys_met(const Tensor& support, int64_t first, int64_t count) {
    const int64_t S = support.size(2), T = support.size(-1);
    const int64_t causal = T - S + first + count;
    if (count == S ||
        support.narrow(2, first, count).narrow(-1, causal, T - causal).any().item<bool>())
      return T;
    return causal;
  }

  bool trains_indexer() const { return ctx_.objective.kl != KlStage::none; }

  /// Selection is not differentiable; the scores are, for the KL, but their inputs are detached
  /// (docs/spec.md 2).
  Indexed index_keys(const Tensor& hidden, const Tensor& q_raw, const Tensor& q_latent) {
    const bool differentiable = trains_indexer() || ctx_.dialect.indexer.scores_attached;
    if (flow_.replaying() && !differentiable) return {replayed_support(), {}};
    torch::AutoGradMode grad(torch::GradMode::is_enabled() && differentiable);
    const KlVariant& kl = ctx_.dialect.kl;
    const Tensor x = kl.hidden_detached ? hidden.detach() : hidden;
    const Tensor q_found = ctx_.dialect.indexer.raw_q_latent ? q_raw : q_latent;
    const Tensor q_source = kl.q_latent_detached ? q_found.detach() : q_found;
    const Tensor ix_q = put(
        "ix.q", index_query(ctx_, q_source, weight("self_attn.indexer.wq_b.weight"), chunk_.rope));
    const Tensor ix_k =
        put("ix.k", index_key(ctx_, x, weight("self_attn.indexer.wk.weight"),
                              weight("self_attn.indexer.k_norm.weight"),
                              weight("self_attn.indexer.k_norm.bias"), chunk_.rope));
    const Tensor ix_weights =
        put("ix.weights", index_weights(ctx_, x, weight("self_attn.indexer.weights_proj.weight")));
    if (ctx_.dialect.cache.index_forgotten && cache_.ix_k.defined())
      cache_.ix_k = torch::zeros_like(cache_.ix_k);
    const Tensor ix_keys = append(ctx_.dialect.cache, cache_.ix_k, ix_k);
    const Tensor scores =
        put("ix.scores", index_scores(ctx_, ix_q, ix_keys, ix_weights, scored_keys()));
    if (flow_.replaying()) return {replayed_support(), scores};
    if (ctx_.dialect.selection.per_head)
      return {per_head_support(ix_q, ix_keys, ix_weights), scores};
    return {support_from(flow_.decide(layer_tap(layer_, "topk"), choose(scores))), scores};
  }

  /// What index_scores reads as visible: the right mask where it is only added.
  Tensor scored_keys() const {
    const Mask mask = ctx_.dialect.selection.mask;
    return mask == Mask::added ? chunk_.visible : visible_under(mask, chunk_);
  }

  /// A mask that is only added to the logits.
  Tensor masked(const Tensor& logits, const Tensor& visible) const {
    return ctx_.dialect.attention.mask == Mask::added ? logits + visible.unsqueeze(1) : logits;
  }

  /// Selection made differentiable by a term that is 0 and carries the scores' gradient.
  Tensor with_scores(const Tensor& logits, const Tensor& scores, const Tensor& visible) const {
    if (!ctx_.dialect.indexer.scores_attached) return logits;
    const Tensor seen = scores.masked_fill(~visible, 0);
    return logits + (seen - seen.detach()).unsqueeze(1);
  }

  /// The KL of this chunk's queries, added to those of the chunks before.
  void add_kl(const Tensor& logits, const Tensor& probs, const Indexed& indexed) {
    const KlVariant& kl = ctx_.dialect.kl;
    const Tensor support = indexed.support.any(1);  // [B,S,T]
    const Tensor attention =
        kl.dense_target ? attention_probs(ctx_, logits, chunk_.visible.unsqueeze(1)) : probs;
    const Tensor target =
        put("kl.target", kl_target(ctx_, kl.target_detached ? attention.detach() : attention));
    const Tensor keys = kl.student_over_visible ? chunk_.visible : support;
    put("kl.student", kl_student(ctx_, indexed.scores, keys));
    const Tensor rows = put("kl.rows", kl_rows(ctx_, target, indexed.scores, keys));
    if (!flow_.replaying())
      put("kl.dscores", kl_score_gradient(ctx_, target, indexed.scores, keys));
    const Tensor sum = (rows * chunk_.valid).sum();
    cache_.kl_sum = cache_.kl_sum.defined() ? cache_.kl_sum + sum : sum;
  }

  Tensor choose(const Tensor& scores) const {
    int64_t k = ctx_.config.index_topk + ctx_.dialect.selection.topk_delta;
    if (ctx_.dialect.selection.k_of_queries) k = std::min(k, scores.size(1));
    const Tensor picks = select_topk(scores, k);
    return k < ctx_.config.index_topk
               ? torch::constant_pad_nd(picks, {0, ctx_.config.index_topk - k}, -1)
               : picks;
  }

  Tensor support_from(const Tensor& topk) const {
    const Tensor visible = visible_under(ctx_.dialect.attention.mask, chunk_);
    if (ctx_.dense_attention()) return visible.unsqueeze(1);
    return (support_of(topk, visible.size(-1)) & visible).unsqueeze(1);
  }

  Tensor per_head_support(const Tensor& q, const Tensor& k, const Tensor& w) {
    const Tensor picks =
        choose(index_scores_per_head(ctx_, q, k, w, chunk_.visible));  // [B,S,H_I,k]
    flow_.decide(layer_tap(layer_, "topk"), picks.select(2, 0));
    const Tensor heads =
        torch::arange(ctx_.config.num_attention_heads, picks.device()) % picks.size(2);
    const Tensor per_head = support_of(picks, chunk_.visible.size(-1)).index_select(2, heads);
    return per_head.transpose(1, 2) & chunk_.visible.unsqueeze(1);
  }

  Tensor replayed_support() const {
    return support_from(flow_.decision(layer_tap(layer_, "topk")));
  }

  Tensor mlp(const Tensor& y, const std::string& prefix, bool swapped, bool silu) {
    const auto weight_of = [&](const char* projection) {
      return weight(prefix + (swapped ? other_half(projection) : projection) + ".weight");
    };
    return swiglu_mlp(ctx_, y, weight_of, silu);
  }

  Tensor scaled(const Tensor& shared) const {
    const int power = ctx_.dialect.moe.shared_scale;
    return power == 0 ? shared : shared * std::pow(ctx_.config.routed_scaling_factor, power);
  }

  const Context& ctx_;
  int64_t layer_;
  LayerWeights& weights_;
  const ChunkInputs& chunk_;
  LayerCache& cache_;
  TapFlow& flow_;
};

}  // namespace dsv32::reference
