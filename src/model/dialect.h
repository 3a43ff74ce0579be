#pragma once

#include <functional>
#include <string>
#include <vector>

#include "src/model/objective.h"
#include "src/model/tensor.h"

namespace dsv32 {

/// Variants of each op. Every default is spec-1; a dialect or a planted bug changes some of them.
/// Sources of the variants: the public implementations named in docs/dialects.md.

enum class RopePairing { interleaved, half };

struct NormVariant {
  double eps_block = 0;      // attn_norm and ffn_norm; 0: config rms_norm_eps
  double eps_attn_norm = 0;  // overrides eps_block for one norm; 0: not
  double eps_ffn_norm = 0;
  double eps_q_latent = 0;
  double eps_kv_latent = 0;
  double eps_final = 0;
  bool weight_plus_one = false;   // every norm multiplies by 1 + weight
  bool subtracts_mean = false;    // every RMSNorm subtracts the mean first, as LayerNorm does
  bool q_latent_missing = false;  // its projection is used as it is
  bool kv_latent_missing = false;

  bool operator==(const NormVariant&) const = default;
};

/// What of the rotation is rounded to bfloat16 in a model of any dtype.
enum class CoarseRope { none, table, angles, frequencies };

struct RopeVariant {
  RopePairing mla = RopePairing::interleaved;
  bool yarn_ignored = false;  // plain frequencies
  /// factor = max_position_embeddings / original_max_position_embeddings (not in the softmax scale)
  bool yarn_factor_is_ratio = false;
  /// cos/sin times mscale(factor, mscale) / mscale(factor, mscale_all_dim)
  bool yarn_amplitude = false;
  bool amplitude_undivided = false;  // times mscale(factor, mscale) alone
  bool default_theta = false;        // 10000 whatever the config says
  bool positions_of_row0 = false;    // row 0's positions for the whole batch
  bool positions_per_chunk = false;  // each chunk starts at 0 again
  int position_offset = 0;
  int offset_after_prompt = 0;  // added to the positions of every chunk but the first
  bool q_reversed = false;      // rotated in the opposite sense
  bool k_reversed = false;
  bool q_missing = false;  // not rotated at all
  bool k_missing = false;
  CoarseRope coarse = CoarseRope::none;
  bool angles_along_heads = false;  // indexer q: cos/sin along the head axis (needs S == H_I)
  bool angles_not_halved = false;   // indexer: full-width table used for half vectors

  bool operator==(const RopeVariant&) const = default;
};

enum class ReluPlace { before_weight, after_weight, after_sum, none };
enum class KNorm { layer_norm, layer_norm_no_bias, rms_norm, none };
enum class HeadWeights { raw, sigmoid, unused, one };
enum class Hadamard { none, both, queries_only };

struct IndexerVariant {
  RopePairing rope = RopePairing::half;
  bool rope_first = true;
  bool rope_missing = false;
  bool rope_reversed = false;
  bool raw_q_latent = false;  // q from the latent before its norm
  KNorm k_norm = KNorm::layer_norm;
  double eps_k_norm = 1e-6;
  bool scale_heads = true;  // H_I^-0.5
  bool scale_dim = true;    // D_I^-0.5
  ReluPlace relu = ReluPlace::before_weight;
  HeadWeights head_weights = HeadWeights::raw;  // unused: heads are summed; one: with the scales
  Hadamard hadamard = Hadamard::none;           // rotates before the scores (taps stay before it)
  bool hadamard_in_bfloat16 = false;            // its inputs and outputs are rounded
  bool scores_attached = false;  // attention adds scores - detach(scores): 0, with a gradient

  bool operator==(const IndexerVariant&) const = default;
};

/// Which keys a query may see.
enum class Mask {
  right,       // no later key and no padding
  no_causal,   // no padding
  no_padding,  // no later key
  none,        // every key
  added,       // every key; where `right` allows it, 1 is added to its score
};

struct SelectionVariant {
  Mask mask = Mask::right;
  int mask_shift = 0;         // key t visible iff t <= s + shift (t >= 0); 0 is right
  int topk_delta = 0;         // added to index_topk
  bool k_of_queries = false;  // no more keys than the call has queries
  bool per_head = false;      // attention head h uses the set of indexer head h mod H_I

  bool operator==(const SelectionVariant&) const = default;
};

/// What a chunk reads of the chunks before it.
struct CacheVariant {
  bool other_row = false;        // keys of the next row of the batch
  bool index_forgotten = false;  // the indexer's keys of earlier chunks are zeros

  bool operator==(const CacheVariant&) const = default;
};

enum class SoftmaxScale { qk, nope, v, none };

struct AttentionVariant {
  Mask mask = Mask::right;  // of the selected keys
  SoftmaxScale scale = SoftmaxScale::qk;
  int mscale_power = 2;             // 0: missing, 4: applied twice
  bool mscale_from_mscale = false;  // uses `mscale` in place of `mscale_all_dim`
  bool absorbed = false;            // MQA on the latent; the same function
  bool kv_b_blocks = false;         // rows of kv_b: the keys of all heads, then the values of all
  bool q_b_rope_first = false;      // rows of q_b, in each head: the rotated lanes first

  bool operator==(const AttentionVariant&) const = default;
};

/// share: the best num_experts_per_tok / topk_group; every_group: no group is excluded.
enum class GroupScore { top2, max, share, every_group };

struct RouterVariant {
  bool bias_in_weights = false;
  bool bias_in_choice = true;
  bool bias_in_bfloat16 = false;
  bool softmax = false;  // scores by softmax in place of sigmoid
  GroupScore group_score = GroupScore::top2;
  bool group_fill_zero = false;
  bool normalise = true;
  bool normalise_over_all = false;  // divides by the scores of all experts
  int topk_group_delta = 0;         // added to topk_group
  double norm_eps = 1e-20;
  int scale_times = 1;  // routed_scaling_factor applied 0, 1 or 2 times
  int expert_id_shift = 0;
  bool detach_weights = false;

  bool operator==(const RouterVariant&) const = default;
};

struct MoeVariant {
  bool silu_dense = true;
  bool silu_routed = true;
  bool silu_shared = true;
  bool swapped_dense = false;  // gate and up exchanged, in the dense MLP, ...
  bool swapped_routed = false;
  bool swapped_shared = false;
  int shared_scale = 0;  // power of routed_scaling_factor that the shared expert is multiplied by
  bool shared_missing = false;
  int dropped_gradient_expert = -1;  // this expert's weights get no gradient

  bool operator==(const MoeVariant&) const = default;
};

struct ResidualVariant {
  bool from_normed = false;   // attention: h = norm(h) + attention(norm(h))
  bool embed_scaled = false;  // the stream starts from embedding * sqrt(hidden_size)

  bool operator==(const ResidualVariant&) const = default;
};

struct LossVariant {
  bool shifted = true;
  bool shifted_twice = false;
  bool mean_over_all = false;

  bool operator==(const LossVariant&) const = default;
};

/// The indexer's KL (docs/spec.md 2).
struct KlVariant {
  bool student_over_visible = false;  // sparse stage: student over every visible key
  bool dense_target = false;          // sparse stage: target from dense attention
  bool target_normalised = true;      // L1 over the keys
  bool max_over_heads = false;        // in place of the sum
  bool student_scaled = true;         // false: scores without the index scales in the student
  bool hidden_detached = true;        // what ix.k and ix.weights are made of
  bool q_latent_detached = true;      // what ix.q is made of
  bool target_detached = true;
  double log_epsilon = 0;      // added inside both logarithms
  bool mean_over_all = false;  // over all tokens in place of the valid query rows
  bool sum_over_layers = false;
  bool sum_over_rows = false;

  bool operator==(const KlVariant&) const = default;
};

/// To what the operands of a matrix product are rounded.
enum class Operands { exact, tf32, bfloat16, float16 };
/// Which products.
enum class ProductOf { everything, router, index_scores, other };

struct LinearVariant {
  int split_k = 1;  // partial sums over the inner dimension, added last to first
  Operands operands = Operands::exact;
  bool result_too = false;  // the product is stored in that type as well
  ProductOf where = ProductOf::everything;

  bool operator==(const LinearVariant&) const = default;
};

/// FP8 inside a 16-bit model, as the official release computes it (docs/spec.md 1, fp8 mode). The
/// rest are faults of it.
struct Fp8Variant {
  bool linear = false;       // linear layers multiply codes; weights are FP8
  bool latent = false;       // kv_latent is quantised and restored
  bool indexer = false;      // scores are made of codes of the rotated queries and keys
  bool plain_scale = false;  // float32 scales of activations, whatever scale_fmt says
  bool input_exact = false;  // linear layers do not quantise their input
  bool scale_below = false;  // scales are the power of two below, not above
  bool unrotated = false;    // no Hadamard rotation before the indexer's codes
  bool half_runs = false;    // runs of half the width share a scale

  bool operator==(const Fp8Variant&) const = default;
};

/// Where a 16-bit model rounds (docs/spec.md 1, bf16 mode). Both are right.
/// `spec`: as the official demo. `transformers`: also normed values before their weight,
/// silu(gate), weighted expert outputs and logits; its norms read the rounded residual sum.
enum class RoundingStyle { spec, transformers };

struct Dialect {
  std::string name = "spec-1";
  NormVariant norm;
  RopeVariant rope;
  IndexerVariant indexer;
  SelectionVariant selection;
  CacheVariant cache;
  AttentionVariant attention;
  RouterVariant router;
  MoeVariant moe;
  ResidualVariant residual;
  LossVariant loss;
  KlVariant kl;
  LinearVariant linear;
  Fp8Variant fp8;
  RoundingStyle rounding = RoundingStyle::spec;

  bool operator==(const Dialect&) const = default;
};

/// The presets (spec-1, hf and the others) in the order in which they are tried.
const std::vector<Dialect>& dialect_presets();
/// A dialect by its name: a preset, a toggle of the catalogue (KnownBug), or a sum of them,
/// "hf+k-norm-eps", planted from left to right. Throws Error (usage) with the nearest name.
Dialect find_dialect(const std::string& name);
/// What a model of this dialect computes in a dtype: `fp8` quantises all that the release does, and
/// only 16-bit models quantise anything.
Dialect in_dtype(Dialect dialect, DType dtype);
/// For people: what a model of this dialect does differently, part by part, and what follows.
std::string dialect_consequence(const std::string& name);

/// A known bug: one toggle, the tap that it corrupts first, and how to say it.
struct KnownBug {
  std::string name;         // "indexer-rope-interleaved"
  std::string description;  // "indexer RoPE rotates interleaved pairs instead of halves"
  std::string first_tap;    // as tap_stem: "ix.q", or "grad.mlp.gate.weight"
  std::string case_name;    // a case in which it shows
  std::function<void(Dialect&)> plant;
  Objective objective = {};  // under which it shows
};
const std::vector<KnownBug>& known_bugs();
/// What FP8 adds to a 16-bit model, and bugs in it. They show in 16 bits alone, those of fp8 mode
/// in fp8 mode alone.
const std::vector<KnownBug>& fp8_toggles();

}  // namespace dsv32
