#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/bridge/libtorch.h"
#include "src/model/config.h"
#include "src/model/dialect.h"
#include "src/model/objective.h"
#include "src/reference/layer_weights.h"
#include "src/reference/rounding.h"
#include "src/reference/sums.h"

/// The ops of the model in paper order. Each is the formula of docs/spec.md 1; every variant's
/// default is spec-1. Axes: B batch, S query tokens of this call, T keys so far, H heads, D head
/// dim, E experts.
namespace dsv32::reference {

/// What every op of a run knows.
struct Context {
  const ModelConfig& config;
  const Dialect& dialect;
  Rounding rounding;
  torch::Device device = torch::kCPU;
  Objective objective = {};
  Summation sums = Summation::blocked;
  Fp8Config fp8 = {};  // of the weights
  /// Attention over every visible key: by config, or in the dense warm-up (docs/spec.md 2, Eq. 3).
  bool dense_attention() const {
    return !config.use_sparse_attention || objective.kl == KlStage::warmup;
  }
  /// How products of this kind are computed.
  Sums products(ProductOf kind = ProductOf::other) const {
    const LinearVariant& linear = dialect.linear;
    const bool meant = linear.where == ProductOf::everything || linear.where == kind;
    return meant ? Sums{sums, linear.operands, linear.result_too} : Sums{sums};
  }
  torch::TensorOptions real() const { return torch::dtype(rounding.compute_type()).device(device); }
};

// --- quant.cpp ----------------------------------------------------------------------------------

/// Codes and scales of runs of the last axis, which has `run` values to a scale (the last run may
/// be shorter).
struct Quantized {
  Tensor codes;   // [..,D] values of e4m3 codes, in x's dtype
  Tensor scales;  // [..,ceil(D/run)]
  int64_t run;
};
/// Q(x) of x rounded to bfloat16, made in float32. docs/spec.md 1, fp8 mode.
Quantized quantize(const Context& ctx, const Tensor& x, int64_t run);
/// code * scale, [..,D].
Tensor restored(const Quantized& q);
/// The same of Q(x); its gradient passes unquantised.
Tensor through_fp8(const Context& ctx, const Tensor& x);
/// x [..,in] times weight [out,in]^T: sum over runs of s_x s_w (codes . codes), not rounded.
Tensor fp8_product(const Context& ctx, const Quantized& x, const Weight& weight);
/// Values of the last axis to a scale.
int64_t run_of_activations(const Context& ctx);

// --- norm.cpp -----------------------------------------------------------------------------------

/// x / sqrt(mean(x^2) + eps) * w over the last axis. docs/spec.md 1.2.
Tensor rms_norm(const Context& ctx, const Tensor& x, const Tensor& weight, double eps);
/// Indexer key norm: LayerNorm with weight and bias. x [B,S,D_I]. docs/spec.md 1.5.
Tensor index_key_norm(const Context& ctx, const Tensor& x, const Tensor& weight,
                      const Tensor& bias);

// --- rope.cpp -----------------------------------------------------------------------------------

/// cos and sin of every rotation angle, [B,S,d/2].
struct RopeTable {
  Tensor cos, sin;
};
/// positions [B,S] int64. docs/spec.md 1.3 (YaRN).
RopeTable rope_table(const Context& ctx, const Tensor& positions);
/// x [B,S,...,d] rotated by the angles of its token; output in the layout of the input.
Tensor rotate(const Context& ctx, const Tensor& x, const RopeTable& table, RopePairing pairing);
/// The table itself, or that of the opposite rotation.
RopeTable in_sense(const RopeTable& table, bool reversed);
/// qk_head_dim^-0.5 * mscale^2. docs/spec.md 1.3.
double softmax_scale(const ModelConfig& config, const AttentionVariant& variant);
/// Orthogonal Hadamard rotation of the last axis (a power of two), scale n^-0.5.
Tensor hadamard(const Tensor& x);

// --- mla.cpp ------------------------------------------------------------------------------------

/// x [.., in] times weight [out, in]^T, in float32 or better.
Tensor unrounded_linear(const Context& ctx, const Tensor& x, const Tensor& weight);
/// The same as a layer of the model: its output is stored in the model's dtype (docs/spec.md 1,
/// bf16 mode); in fp8 mode codes are multiplied.
Tensor linear(const Context& ctx, const Tensor& x, const Weight& weight);
/// Key and value per head that the latent stands for.
struct ExpandedKv {
  Tensor k_nope;  // [B,T,H,nope]
  Tensor v;       // [B,T,H,v]
};
ExpandedKv expand_kv(const Context& ctx, const Tensor& kv_latent, const Weight& kv_b);
/// What attention multiplies. Expanded (MHA) or absorbed (MQA on the latent): the same function.
struct AttentionOperands {
  Tensor q;          // [B,H,S,*]
  Tensor k;          // [B,1|H,T,*]
  Tensor v;          // [B,H,T,v], or the latent [B,1,T,kv_lora]
  Tensor value_map;  // [H,v,kv_lora] of the absorbed form, else undefined
};
/// From q_nope [B,S,H,nope], q_rope [B,S,H,rope], kv_latent [B,T,kv_lora], k_rope [B,T,rope].
AttentionOperands attention_operands(const Context& ctx, Tensor q_nope, Tensor q_rope,
                                     const Tensor& kv_latent, const Tensor& k_rope,
                                     const Weight& kv_b);
/// Scaled attention logits [B,H,S,T] of some or all queries.
Tensor attention_logits(const Context& ctx, const Tensor& q, const Tensor& k);
/// Softmax over the supported keys only; support [B,1|H,S,T] bool. A query without keys gets zeros.
/// docs/spec.md 1.7.
Tensor attention_probs(const Context& ctx, const Tensor& logits, const Tensor& support);
/// [B,S,H,v] from probs [B,H,S,T].
Tensor attention_context(const Context& ctx, const Tensor& probs,
                         const AttentionOperands& operands);

// --- indexer.cpp --------------------------------------------------------------------------------

/// ix.q [B,S,H_I,D_I] from the normalised q_latent. docs/spec.md 1.5.
Tensor index_query(const Context& ctx, const Tensor& q_latent, const Weight& wq_b,
                   const RopeTable& table);
/// ix.k [B,S,D_I] from the normed hidden state.
Tensor index_key(const Context& ctx, const Tensor& x, const Weight& wk, const Tensor& norm_weight,
                 const Tensor& norm_bias, const RopeTable& table);
/// ix.weights [B,S,H_I], both scales folded in; float32 or better.
Tensor index_weights(const Context& ctx, const Tensor& x, const Tensor& weights_proj);
/// score[b,s,t] = sum_j w[b,s,j] relu(q[b,s,j] . k[b,t]), [B,S,T]; -inf where `visible` [B,S,T] is
/// false.
Tensor index_scores(const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& weights,
                    const Tensor& visible);

/// The same per indexer head, without the sum: [B,S,H_I,T]. Only the planted bug "selection per
/// head" asks for it.
Tensor index_scores_per_head(const Context& ctx, const Tensor& q, const Tensor& k,
                             const Tensor& weights, const Tensor& visible);

// --- topk.cpp -----------------------------------------------------------------------------------

/// The first k of each row of scores [..,T] under the total order (score descending, index
/// ascending, -0 == +0). int64 indices [..,k]; -1 where fewer than k entries are above -inf. k may
/// exceed T.
Tensor select_topk(const Tensor& scores, int64_t k);
/// Selected keys [..,S,T] bool from indices [..,S,k] (-1: none).
Tensor support_of(const Tensor& topk, int64_t T);

// --- router.cpp ---------------------------------------------------------------------------------

/// s = sigmoid(logits); biased choice within the best groups; ids [B,S,K] int64 ascending.
/// docs/spec.md 1.8.
Tensor route(const Context& ctx, const Tensor& logits, const Tensor& bias);
/// Unbiased s of the chosen experts, normalised and scaled once. [B,S,K]
Tensor routing_weights(const Context& ctx, const Tensor& logits, const Tensor& bias,
                       const Tensor& experts);

// --- moe.cpp ------------------------------------------------------------------------------------

/// Gives a matrix of an MLP by its name ("gate_proj", "up_proj", "down_proj"), each when it is
/// needed: at full size no more than one of them is held.
using ProjectionSource = std::function<Weight(const char* projection)>;
/// "up_proj" for "gate_proj" and the reverse: of a model that swaps them.
std::string other_half(const std::string& projection);

/// down(silu(gate(x)) * up(x)).
Tensor swiglu_mlp(const Context& ctx, const Tensor& x, const ProjectionSource& weight_of,
                  bool silu);
/// What one routed expert adds to tokens that chose it, [n,hidden]; their rows [n,hidden] and
/// routing weights [n].
Tensor expert_rows(const Context& ctx, int64_t expert, const Tensor& rows, const Tensor& weights,
                   LayerWeights& layer);
/// Sum over chosen experts in ascending expert id. x [B,S,hidden], experts and weights [B,S,K].
Tensor routed_experts(const Context& ctx, const Tensor& x, const Tensor& experts,
                      const Tensor& weights, LayerWeights& layer);

// --- kl.cpp -------------------------------------------------------------------------------------
// The indexer's KL(target || student), docs/spec.md 2. support [B,S,T] bool: every visible key in
// the warm-up (Eq. 3), the selected ones in the sparse stage (Eq. 4). No epsilon anywhere.

/// Sum over heads of the attention probabilities [B,H,S,T], divided by its sum over the keys.
/// [B,S,T]; zeros for a query without keys.
Tensor kl_target(const Context& ctx, const Tensor& probs);
/// Softmax of the index scores [B,S,T] over the support.
Tensor kl_student(const Context& ctx, const Tensor& scores, const Tensor& support);
/// KL of every query, [B,S]: sum over keys of p log p - p log_softmax(score), 0 log 0 = 0.
Tensor kl_rows(const Context& ctx, const Tensor& target, const Tensor& scores,
               const Tensor& support);
/// d(sum of kl_rows)/d(scores) by autograd, [B,S,T]: student - target on the support, 0 off it.
Tensor kl_score_gradient(const Context& ctx, const Tensor& target, const Tensor& scores,
                         const Tensor& support);

// --- head.cpp -----------------------------------------------------------------------------------

/// Shifted cross entropy, ignore -100, mean over the counted tokens. logits [B,S,vocab], labels
/// [B,S]. docs/spec.md 1.10.
Tensor lm_loss(const Context& ctx, const Tensor& logits, const Tensor& labels);
/// The same from logits that come block by block of the vocabulary, with a running log-sum-exp.
class BlockedLoss {
 public:
  BlockedLoss(const Context& ctx, const Tensor& labels);
  /// logits [B,S,n] of the tokens [first, first + n) of the vocabulary.
  void add(const Tensor& logits, int64_t first);
  Tensor loss() const;

 private:
  const Context& ctx_;
  int64_t S_;
  Tensor targets_, largest_, sum_, picked_;
};

}  // namespace dsv32::reference
