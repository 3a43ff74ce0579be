#include "src/model/dialect.h"

namespace dsv32 {

namespace {

// A row of the catalogue whose case is tiny-wide.
KnownBug bug(std::string name, std::string description, std::string first_tap,
             std::function<void(Dialect&)> plant) {
  return {std::move(name), std::move(description), std::move(first_tap), "tiny-wide",
          std::move(plant)};
}

KnownBug in_case(std::string case_name, KnownBug known) {
  known.case_name = std::move(case_name);
  return known;
}

// A bug of the indexer's KL.
KnownBug under(KlStage stage, KnownBug known) {
  known.objective = {.lm = false, .kl = stage};
  return known;
}

using Rows = std::vector<KnownBug>;

Rows indexer_bugs() {
  return {
      bug("indexer-rope-interleaved", "indexer RoPE rotates interleaved pairs instead of halves",
          "ix.q", [](Dialect& d) { d.indexer.rope = RopePairing::interleaved; }),
      bug("mla-rope-half", "main RoPE rotates halves instead of interleaved pairs", "q_rope",
          [](Dialect& d) { d.rope.mla = RopePairing::half; }),
      bug("indexer-nope-first", "indexer rotates the last lanes of its heads instead of the first",
          "ix.q", [](Dialect& d) { d.indexer.rope_first = false; }),
      bug("indexer-raw-q-latent", "indexer queries come from the latent before its norm", "ix.q",
          [](Dialect& d) { d.indexer.raw_q_latent = true; }),
      bug("relu-missing", "index scores without the ReLU", "ix.scores",
          [](Dialect& d) { d.indexer.relu = ReluPlace::none; }),
      bug("relu-after-weight", "ReLU after the head weight instead of before it", "ix.scores",
          [](Dialect& d) { d.indexer.relu = ReluPlace::after_weight; }),
      bug("k-norm-bias-missing", "k_norm without its bias", "ix.k",
          [](Dialect& d) { d.indexer.k_norm = KNorm::layer_norm_no_bias; }),
      bug("k-norm-eps", "k_norm with eps 1e-5 instead of 1e-6", "ix.k",
          [](Dialect& d) { d.indexer.eps_k_norm = 1e-5; }),
      bug("k-norm-rms", "RMSNorm in place of LayerNorm on the indexer's keys", "ix.k",
          [](Dialect& d) { d.indexer.k_norm = KNorm::rms_norm; }),
      bug("index-scale-heads-missing", "index weights without index_n_heads^-0.5", "ix.weights",
          [](Dialect& d) { d.indexer.scale_heads = false; }),
      bug("index-scale-dim-missing", "index weights without index_head_dim^-0.5", "ix.weights",
          [](Dialect& d) { d.indexer.scale_dim = false; }),
  };
}

Rows selection_bugs() {
  return {
      bug("mask-missing", "no causal and padding mask before the top-k", "ix.scores",
          [](Dialect& d) { d.selection.mask = Mask::none; }),
      bug("indexer-causal-missing", "no causal mask in the indexer", "ix.scores",
          [](Dialect& d) { d.selection.mask = Mask::no_causal; }),
      bug("indexer-padding-missing", "no padding mask in the indexer", "ix.scores",
          [](Dialect& d) { d.selection.mask = Mask::no_padding; }),
      bug("indexer-mask-added", "mask added to the index scores as 0 and 1", "ix.scores",
          [](Dialect& d) { d.selection.mask = Mask::added; }),
      bug("mask-off-by-one", "a query sees the key after it", "ix.scores",
          [](Dialect& d) { d.selection.mask_shift = 1; }),
      bug("topk-minus-one", "one key too few is selected", "topk",
          [](Dialect& d) { d.selection.topk_delta = -1; }),
      bug("topk-per-head", "every head selects its own keys", "topk",
          [](Dialect& d) { d.selection.per_head = true; }),
      in_case("tiny-chunk", bug("k-of-queries", "no more keys selected than the call has queries",
                                "topk", [](Dialect& d) { d.selection.k_of_queries = true; })),
      in_case("tiny-chunk", bug("cache-other-row", "cached keys of another row of the batch",
                                "ix.scores", [](Dialect& d) { d.cache.other_row = true; })),
      in_case("tiny-chunk", bug("index-cache-forgotten", "cached keys of the indexer are zeros",
                                "ix.scores", [](Dialect& d) { d.cache.index_forgotten = true; })),
  };
}

KnownBug masked(std::string name, std::string description, Mask mask) {
  return bug(std::move(name), std::move(description), "ix.scores",
             [mask](Dialect& d) { d.selection.mask = d.attention.mask = mask; });
}

KnownBug attention_masked(std::string name, std::string description, Mask mask) {
  return in_case("tiny-dense", bug(std::move(name), std::move(description), "attn.probs",
                                   [mask](Dialect& d) { d.attention.mask = mask; }));
}

// Of the indexer and the attention; where a selection stands between them, a mask that the
// attention alone lacks is not seen.
Rows mask_bugs() {
  return {
      masked("causal-mask-missing", "no causal mask", Mask::no_causal),
      masked("padding-mask-missing", "no padding mask", Mask::no_padding),
      masked("every-mask-missing", "no mask at all", Mask::none),
      masked("mask-added", "masks added as 0 and 1", Mask::added),
      attention_masked("attention-causal-missing", "no causal mask in the attention",
                       Mask::no_causal),
      attention_masked("attention-padding-missing", "no padding mask in the attention",
                       Mask::no_padding),
      attention_masked("attention-mask-missing", "no mask in the attention", Mask::none),
      attention_masked("attention-mask-added", "mask added to the attention logits as 0 and 1",
                       Mask::added),
  };
}

Rows rope_bugs() {
  return {
      in_case("tiny-yarn", bug("mscale-missing", "softmax scale without mscale^2", "attn.logits",
                               [](Dialect& d) { d.attention.mscale_power = 0; })),
      in_case("tiny-yarn", bug("mscale-twice", "softmax scale with mscale^4", "attn.logits",
                               [](Dialect& d) { d.attention.mscale_power = 4; })),
      in_case("tiny-yarn", bug("yarn-ignored", "YaRN ignored: plain RoPE frequencies", "q_rope",
                               [](Dialect& d) { d.rope.yarn_ignored = true; })),
      in_case("tiny-yarn", bug("mscale-once", "softmax scale with mscale^1", "attn.logits",
                               [](Dialect& d) { d.attention.mscale_power = 1; })),
      in_case("tiny-yarn",
              bug("mscale-field", "softmax scale takes mscale in place of mscale_all_dim",
                  "attn.logits", [](Dialect& d) { d.attention.mscale_from_mscale = true; })),
      in_case("tiny-yarn", bug("yarn-amplitude",
                               "cos and sin multiplied by mscale(factor, mscale) / mscale(factor, "
                               "mscale_all_dim)",
                               "q_rope", [](Dialect& d) { d.rope.yarn_amplitude = true; })),
      in_case("tiny-yarn",
              bug("yarn-amplitude-undivided", "cos and sin multiplied by mscale(factor, mscale)",
                  "q_rope", [](Dialect& d) { d.rope.amplitude_undivided = true; })),
      in_case("tiny-yarn",
              bug("yarn-factor-ratio",
                  "YaRN factor is max_position_embeddings / original_max_position_embeddings",
                  "q_rope", [](Dialect& d) { d.rope.yarn_factor_is_ratio = true; })),
      bug("softmax-scale-nope", "softmax scale from qk_nope_head_dim alone", "attn.logits",
          [](Dialect& d) { d.attention.scale = SoftmaxScale::nope; }),
      bug("softmax-scale-missing", "attention logits without the softmax scale", "attn.logits",
          [](Dialect& d) { d.attention.scale = SoftmaxScale::none; }),
      in_case("tiny-odd", bug("softmax-scale-v", "softmax scale from v_head_dim", "attn.logits",
                              [](Dialect& d) { d.attention.scale = SoftmaxScale::v; })),
      bug("kv-b-blocks", "kv_b read as the keys of all heads, then the values of all heads",
          "attn.logits", [](Dialect& d) { d.attention.kv_b_blocks = true; }),
      bug("q-b-rope-first", "q_b read with the rotated lanes of each head first", "q_nope",
          [](Dialect& d) { d.attention.q_b_rope_first = true; }),
      bug("q-rope-missing", "queries of the attention are not rotated", "q_rope",
          [](Dialect& d) { d.rope.q_missing = true; }),
      bug("k-rope-missing", "keys of the attention are not rotated", "k_rope",
          [](Dialect& d) { d.rope.k_missing = true; }),
      bug("rope-table-bfloat16", "cos and sin of the rotation rounded to bfloat16", "q_rope",
          [](Dialect& d) { d.rope.coarse = CoarseRope::table; }),
      bug("rope-angles-bfloat16", "angles of the rotation rounded to bfloat16", "q_rope",
          [](Dialect& d) { d.rope.coarse = CoarseRope::angles; }),
      bug("rope-frequencies-bfloat16", "frequencies of the rotation rounded to bfloat16", "q_rope",
          [](Dialect& d) { d.rope.coarse = CoarseRope::frequencies; }),
      bug("q-rope-reversed", "queries rotated in the opposite sense", "q_rope",
          [](Dialect& d) { d.rope.q_reversed = true; }),
      bug("k-rope-reversed", "keys rotated in the opposite sense", "k_rope",
          [](Dialect& d) { d.rope.k_reversed = true; }),
      in_case("tiny-chunk", bug("positions-per-chunk", "positions start at 0 in every chunk",
                                "q_rope", [](Dialect& d) { d.rope.positions_per_chunk = true; })),
      in_case("tiny-chunk",
              bug("position-after-prompt", "positions after the first chunk shifted by one",
                  "q_rope", [](Dialect& d) { d.rope.offset_after_prompt = 1; })),
      bug("positions-row0", "positions of row 0 used for every row of the batch", "q_rope",
          [](Dialect& d) { d.rope.positions_of_row0 = true; }),
  };
}

Rows router_bugs() {
  return {
      bug("bias-in-weights", "correction bias used in the expert weights", "router.weights",
          [](Dialect& d) { d.router.bias_in_weights = true; }),
      bug("bias-not-in-choice", "correction bias ignored in the expert choice", "router.experts",
          [](Dialect& d) { d.router.bias_in_choice = false; }),
      bug("group-score-max", "group score is the best expert instead of the two best",
          "router.experts", [](Dialect& d) { d.router.group_score = GroupScore::max; }),
      in_case("tiny-bias",
              bug("group-fill-zero", "excluded groups filled with 0 instead of -inf",
                  "router.experts", [](Dialect& d) { d.router.group_fill_zero = true; })),
      bug("group-limit-ignored", "experts chosen from every group", "router.experts",
          [](Dialect& d) { d.router.group_score = GroupScore::every_group; }),
      bug("router-softmax", "router scores by softmax instead of sigmoid", "router.experts",
          [](Dialect& d) { d.router.softmax = true; }),
      bug("no-weight-normalisation", "expert weights are not divided by their sum",
          "router.weights", [](Dialect& d) { d.router.normalise = false; }),
      bug("weights-over-all-experts", "expert weights divided by the sum over all experts",
          "router.weights", [](Dialect& d) { d.router.normalise_over_all = true; }),
      bug("topk-group-minus-one", "experts chosen from one group too few", "router.experts",
          [](Dialect& d) { d.router.topk_group_delta = -1; }),
      bug("routed-scale-twice", "routed_scaling_factor applied twice", "router.weights",
          [](Dialect& d) { d.router.scale_times = 2; }),
      bug("routed-scale-missing", "routed_scaling_factor not applied", "router.weights",
          [](Dialect& d) { d.router.scale_times = 0; }),
      bug("expert-id-shifted", "expert ids shifted by one", "router.experts",
          [](Dialect& d) { d.router.expert_id_shift = 1; }),
      bug("silu-missing", "no SiLU in any MLP", "mlp.out",  // layer 0 is dense
          [](Dialect& d) { d.moe.silu_dense = d.moe.silu_routed = d.moe.silu_shared = false; }),
      bug("silu-missing-dense", "dense MLP without the SiLU", "mlp.out",
          [](Dialect& d) { d.moe.silu_dense = false; }),
      bug("silu-missing-routed", "routed experts without the SiLU", "moe.routed",
          [](Dialect& d) { d.moe.silu_routed = false; }),
      bug("silu-missing-shared", "shared expert without the SiLU", "moe.shared",
          [](Dialect& d) { d.moe.silu_shared = false; }),
  };
}

Rows moe_bugs() {
  return {
      bug("gate-up-swapped-dense", "gate and up exchanged in the dense MLP", "mlp.out",
          [](Dialect& d) { d.moe.swapped_dense = true; }),
      bug("gate-up-swapped-routed", "gate and up exchanged in the routed experts", "moe.routed",
          [](Dialect& d) { d.moe.swapped_routed = true; }),
      bug("gate-up-swapped-shared", "gate and up exchanged in the shared expert", "moe.shared",
          [](Dialect& d) { d.moe.swapped_shared = true; }),
      bug("shared-expert-scaled", "shared expert multiplied by routed_scaling_factor", "mlp.out",
          [](Dialect& d) { d.moe.shared_scale = 1; }),
      bug("shared-expert-divided", "shared expert divided by routed_scaling_factor", "mlp.out",
          [](Dialect& d) { d.moe.shared_scale = -1; }),
      bug("shared-expert-missing", "shared expert left out", "mlp.out",
          [](Dialect& d) { d.moe.shared_missing = true; }),
  };
}

Rows norm_bugs() {
  constexpr double kWrongEps = 1e-5;  // the default of several frameworks
  return {
      bug("eps-attn-norm", "eps 1e-5 in the norm before the attention", "attn_norm",
          [](Dialect& d) { d.norm.eps_attn_norm = kWrongEps; }),
      bug("eps-q-latent", "eps 1e-5 in the norm of the query latent", "q_latent",
          [](Dialect& d) { d.norm.eps_q_latent = kWrongEps; }),
      bug("eps-kv-latent", "eps 1e-5 in the norm of the key-value latent", "kv_latent",
          [](Dialect& d) { d.norm.eps_kv_latent = kWrongEps; }),
      bug("eps-ffn-norm", "eps 1e-5 in the norm before the MLP", "ffn_norm",
          [](Dialect& d) { d.norm.eps_ffn_norm = kWrongEps; }),
      bug("eps-final-norm", "eps 1e-5 in the final norm", "final_norm",
          [](Dialect& d) { d.norm.eps_final = kWrongEps; }),
      bug("norm-weight-plus-one", "every RMSNorm multiplies by 1 + weight", "attn_norm",
          [](Dialect& d) { d.norm.weight_plus_one = true; }),
      bug("norm-subtracts-mean", "every RMSNorm subtracts the mean first", "attn_norm",
          [](Dialect& d) { d.norm.subtracts_mean = true; }),
      bug("embedding-scaled", "embedding multiplied by sqrt(hidden_size)", "attn_norm",
          [](Dialect& d) { d.residual.embed_scaled = true; }),
      bug("q-latent-norm-missing", "query latent used without its norm", "q_latent",
          [](Dialect& d) { d.norm.q_latent_missing = true; }),
      bug("kv-latent-norm-missing", "key-value latent used without its norm", "kv_latent",
          [](Dialect& d) { d.norm.kv_latent_missing = true; }),
      bug("residual-from-normed", "residual starts from the normalised input", "ffn_norm",
          [](Dialect& d) { d.residual.from_normed = true; }),
      in_case("tiny-square", bug("angles-along-heads",
                                 "rotation angles broadcast along the heads, not the positions",
                                 "ix.q", [](Dialect& d) { d.rope.angles_along_heads = true; })),
      bug("angles-not-halved", "full-width cos and sin used for half vectors in the indexer",
          "ix.q", [](Dialect& d) { d.rope.angles_not_halved = true; }),
  };
}

Rows training_bugs() {
  constexpr int kBusyExpert = 3;  // gets tokens in tiny-wide
  return {
      bug("labels-unshifted", "labels are not shifted", "loss.lm",
          [](Dialect& d) { d.loss.shifted = false; }),
      bug("labels-shifted-twice", "labels are shifted twice", "loss.lm",
          [](Dialect& d) { d.loss.shifted_twice = true; }),
      bug("loss-mean-over-all", "loss is the mean over all tokens instead of the counted ones",
          "loss.lm", [](Dialect& d) { d.loss.mean_over_all = true; }),
      bug("router-weights-detached", "no gradient through the expert weights",
          "grad.mlp.gate.weight", [](Dialect& d) { d.router.detach_weights = true; }),
      bug("expert-gradient-dropped", "the gradient of one expert is dropped",
          "grad.mlp.experts.3.down_proj.weight",
          [](Dialect& d) { d.moe.dropped_gradient_expert = kBusyExpert; }),
  };
}

// The indexer's KL: those that no forward tap shows are seen in the gradients.
Rows kl_bugs() {
  using enum KlStage;
  constexpr double kEpsilon = 1e-3;
  return {
      under(sparse, bug("kl-dense-target", "sparse KL: target from dense attention", "kl.target",
                        [](Dialect& d) { d.kl.dense_target = true; })),
      under(warmup, bug("kl-target-not-normalised", "KL target not divided by its sum", "kl.target",
                        [](Dialect& d) { d.kl.target_normalised = false; })),
      under(warmup, bug("kl-max-over-heads", "KL target: maximum over the heads, not the sum",
                        "kl.target", [](Dialect& d) { d.kl.max_over_heads = true; })),
      under(sparse, bug("kl-student-over-visible", "sparse KL: student over every visible key",
                        "kl.student", [](Dialect& d) { d.kl.student_over_visible = true; })),
      under(sparse, bug("kl-student-unscaled", "KL student from scores without the index scales",
                        "kl.student", [](Dialect& d) { d.kl.student_scaled = false; })),
      under(sparse, bug("kl-log-epsilon", "epsilon 1e-3 inside the logarithms of the KL", "kl.rows",
                        [](Dialect& d) { d.kl.log_epsilon = kEpsilon; })),
      under(sparse, bug("kl-mean-over-all",
                        "KL is the mean over all tokens instead of the valid query rows", "loss.kl",
                        [](Dialect& d) { d.kl.mean_over_all = true; })),
      under(sparse, bug("kl-sum-over-layers", "KL is the sum over the layers instead of their mean",
                        "loss.kl", [](Dialect& d) { d.kl.sum_over_layers = true; })),
      under(sparse,
            bug("kl-sum-over-rows", "KL is the sum over the query rows instead of their mean",
                "loss.kl", [](Dialect& d) { d.kl.sum_over_rows = true; })),
      under(sparse,
            bug("kl-hidden-attached", "KL gradient leaks through the hidden state",
                "grad.input_layernorm.weight", [](Dialect& d) { d.kl.hidden_detached = false; })),
      under(sparse, bug("kl-q-latent-attached", "KL gradient leaks through the query latent",
                        "grad.self_attn.q_a_layernorm.weight",
                        [](Dialect& d) { d.kl.q_latent_detached = false; })),
      under(warmup, bug("kl-target-attached", "KL gradient leaks through the target",
                        "grad.self_attn.kv_b_proj.weight",
                        [](Dialect& d) { d.kl.target_detached = false; })),
  };
}

Rows further_bugs() {
  return {
      bug("indexer-rope-missing", "no RoPE in the indexer", "ix.q",
          [](Dialect& d) { d.indexer.rope_missing = true; }),
      bug("position-offset", "all positions shifted by one", "q_rope",
          [](Dialect& d) { d.rope.position_offset = 1; }),
      bug("relu-after-sum", "ReLU after the sum over the index heads", "ix.scores",
          [](Dialect& d) { d.indexer.relu = ReluPlace::after_sum; }),
      bug("indexer-rope-reversed", "indexer rotates in the opposite sense", "ix.q",
          [](Dialect& d) { d.indexer.rope_reversed = true; }),
      bug("k-norm-missing", "indexer keys without their norm", "ix.k",
          [](Dialect& d) { d.indexer.k_norm = KNorm::none; }),
      bug("head-weights-sigmoid", "sigmoid of the index head weights", "ix.weights",
          [](Dialect& d) { d.indexer.head_weights = HeadWeights::sigmoid; }),
      bug("head-weights-unused", "index heads summed without their weights", "ix.scores",
          [](Dialect& d) { d.indexer.head_weights = HeadWeights::unused; }),
      bug("head-weights-one", "index heads summed with their scales, without their weights",
          "ix.scores", [](Dialect& d) { d.indexer.head_weights = HeadWeights::one; }),
      bug("hadamard-queries-only", "Hadamard rotation of the index queries, not of the keys",
          "ix.scores", [](Dialect& d) { d.indexer.hadamard = Hadamard::queries_only; }),
      bug("hadamard-bfloat16", "Hadamard rotation through bfloat16 in the indexer", "ix.scores",
          [](Dialect& d) {
            d.indexer.hadamard = Hadamard::both;
            d.indexer.hadamard_in_bfloat16 = true;
          }),
  };
}

KnownBug coarse(std::string name, std::string description, std::string first_tap,
                const LinearVariant& linear) {
  return bug(std::move(name), std::move(description), std::move(first_tap),
             [linear](Dialect& d) { d.linear = linear; });
}

/// Products of coarser operands than float32, summed in float32.
Rows coarse_products() {
  using enum Operands;
  using enum ProductOf;
  return {
      coarse("tf32-products", "matrix products of TF32 operands", "q_latent", {.operands = tf32}),
      coarse("bfloat16-products", "matrix products of bfloat16 operands", "q_latent",
             {.operands = bfloat16}),
      coarse("float16-products", "matrix products of float16 operands", "q_latent",
             {.operands = float16}),
      coarse("router-bfloat16", "router logits computed and stored in bfloat16", "router.logits",
             {.operands = bfloat16, .result_too = true, .where = router}),
      coarse("router-operands-bfloat16", "router logits from bfloat16 operands", "router.logits",
             {.operands = bfloat16, .where = router}),
      coarse("index-products-bfloat16", "index scores from bfloat16 queries and keys", "ix.scores",
             {.operands = bfloat16, .where = index_scores}),
  };
}

}  // namespace

const std::vector<KnownBug>& known_bugs() {
  static const std::vector<KnownBug> all = [] {
    Rows rows;
    for (const Rows& part :
         {indexer_bugs(), selection_bugs(), mask_bugs(), rope_bugs(), router_bugs(), moe_bugs(),
          norm_bugs(), training_bugs(), kl_bugs(), further_bugs(), coarse_products()}) {
      rows.insert(rows.end(), part.begin(), part.end());
    }
    return rows;
  }();
  return all;
}

}  // namespace dsv32
