#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "src/model/segment.h"
#include "src/optimized/model/context.h"
#include "src/optimized/model/weights.h"

/// One transformer layer by hand: forward, and backward from what the forward pass left.
namespace dsv32::optimized {

/// The residual stream between two layers. A norm reads x + delta before it is rounded
/// (docs/spec.md 1.2).
struct Stream {
  Tensor hidden;  // [B,S,hidden] the tap
  Tensor x;       // [B,S,hidden]
  Tensor delta;   // [B,S,hidden]; undefined at the embedding
};

/// Keys of one layer; the whole length, filled chunk by chunk.
struct KeyCache {
  Tensor kv;    // [B,T,kv_lora+rope]
  Tensor ix_k;  // [B,T,D_I]
};

/// What one chunk brings besides the residual stream.
struct ChunkInputs {
  RopeTable rope;           // of its S query positions
  Tensor mask;              // [B,T] bool: keys so far that are no padding
  Tensor valid;             // [B,S] bool: queries that are no padding
  int64_t first_query = 0;  // cache index of its first query
};

/// A norm's input and 1 / rms.
struct Normed {
  Tensor y, input, rstd;
};
Normed rms_norm(const Context& ctx, const Stream& stream, const Tensor& weight);
Normed rms_norm(const Context& ctx, const Tensor& x, const Tensor& weight);
/// Returns the gradient of the input, `dsum` added (undefined: nothing); keeps that of the weight.
Tensor rms_norm_backward(const Context& ctx, const Tensor& dy, const Normed& normed,
                         const Tensor& weight, const Tensor& dsum, const std::string& name,
                         const KeepGradient& keep);

/// The eps of the indexer's key norm (docs/spec.md 1.5).
inline constexpr double kIndexNormEps = 1e-6;

/// What attention leaves for its backward pass.
struct AttentionState {
  Tensor x;                      // [B,S,hidden] its input
  Normed q, kv;                  // norms of the two latents
  Tensor q_nope, q_rope;         // [B,S,H,nope], [B,S,H,rope]
  Tensor keys;                   // [B,T,kv_lora+rope]
  bool absorbed = false;         // which form ran
  Tensor q_used;                 // expanded: [B,S,H,nope+rope]; absorbed: [B,S,H,kv_lora+rope]
  Tensor k_nope, k_rope, value;  // expanded keys and values
  Tensor support;                // expanded: bit mask [B,S,ceil(T/32)]
  Tensor topk;                   // [B,S,K] int32; undefined in dense mode
  Tensor out, lse;               // of the kernel
  Tensor context;                // [B,S,H,v]
  // the indexer, when it is trained
  Tensor ix_q, ix_k, ix_weights, ix_k_raw, ix_k_mean, ix_k_rstd;
  Tensor dscores;  // d(sum of KL rows)/d(scores), on top-k [B,S,K] or on all keys [B,S,T]
};

class Attention {
 public:
  Attention(const Context& ctx, int64_t layer, Weights& weights, const ChunkInputs& chunk,
            TapFlow& flow);
  /// Takes the normed x [B,S,hidden] and returns attn.out; adds this chunk's KL of the valid
  /// queries to `kl_sum`.
  Tensor forward(const Tensor& x, KeyCache& cache, Tensor& kl_sum, AttentionState& state);
  /// Returns the gradient of x under LM, undefined without one. `dout` undefined: no LM loss.
  /// `kl_scale`: d(loss)/d(sum of KL rows).
  Tensor backward(const Tensor& dout, double kl_scale, const AttentionState& state,
                  const KeepGradient& keep);

 private:
  struct Indexed {
    Tensor topk;    // [B,S,K] int32; undefined in dense mode
    Tensor scores;  // [B,S,T] float32; undefined where nobody reads them
  };
  Tensor put(const char* tap, const Tensor& own) { return flow_.put(layer_tap(layer_, tap), own); }
  const Tensor& weight(const std::string& name) { return weights_.get("self_attn." + name); }
  Tensor project(const Tensor& x, const std::string& name) {
    return optimized::project(ctx_, x, weights_, "self_attn." + name);
  }
  void put_slope(const char* tap, const Tensor& slope) {
    flow_.put_slope(layer_tap(layer_, tap), slope);
  }
  Tensor rotate(const Tensor& x, bool interleaved, bool inverse) const;
  Tensor rotate_first(const Tensor& x, bool inverse) const;
  Tensor key_map();    // [H,nope,kv_lora] view of kv_b
  Tensor value_map();  // [H,v,kv_lora]
  bool use_absorbed(int64_t T) const;
  Tensor append(Tensor& cache, const Tensor& fresh) const;
  Indexed index(const Tensor& x, const Tensor& q_latent, KeyCache& cache, AttentionState& state);
  Tensor index_scores(const Tensor& q, const Tensor& k, const Tensor& weights) const;
  Tensor fp8_index_scores(const AttentionState& state) const;
  Tensor visible_topk(const Tensor& topk) const;
  void attend_expanded(AttentionState& state);
  void attend_absorbed(AttentionState& state);
  void add_kl(const Indexed& indexed, Tensor& kl_sum, AttentionState& state);
  Tensor on_all_keys(const Tensor& values, const AttentionState& state) const;
  Tensor absorbed_query(const AttentionState& state);
  struct KernelGradients {
    Tensor dq_nope, dq_rope, dkeys;
  };
  KernelGradients expanded_backward(const Tensor& dcontext, const AttentionState& state,
                                    const KeepGradient& keep);
  KernelGradients absorbed_backward(const Tensor& dcontext, const AttentionState& state,
                                    const KeepGradient& keep);
  void indexer_backward(double kl_scale, const AttentionState& state, const KeepGradient& keep);

  const Context& ctx_;
  int64_t layer_;
  Weights& weights_;
  const ChunkInputs& chunk_;
  TapFlow& flow_;
};

/// A SwiGLU MLP's intermediates.
struct SwigluState {
  Tensor gate, up, inner;
};
/// Returns down(silu(gate(x)) * up(x)) with the weights `prefix`gate_proj.weight, ...
Tensor swiglu_mlp(const Context& ctx, const Tensor& x, Weights& weights, const std::string& prefix,
                  SwigluState& state);
/// Returns dx.
Tensor swiglu_mlp_backward(const Context& ctx, const Tensor& dout, const Tensor& x,
                           Weights& weights, const std::string& prefix, const SwigluState& state,
                           const KeepGradient& keep);

/// What an MLP leaves for its backward pass.
struct MlpState {
  Tensor y;           // [B,S,hidden] its input
  SwigluState dense;  // of a dense layer, or the shared experts
  Tensor logits, experts, weights;
};
/// Runs the dense MLP, or router, routed and shared experts; returns mlp.out.
Tensor mlp_forward(const Context& ctx, int64_t layer, const Tensor& y, Weights& weights,
                   TapFlow& flow, MlpState& state);
/// What the routed experts hand back: to the MLP's input [N,hidden], to the routing weights [N,K].
struct RoutedGradients {
  Tensor dx, dweights;
};
/// What the backward pass of a layer of experts needs of its forward pass: input and routing.
void mlp_again(const Context& ctx, int64_t layer, const Tensor& y, Weights& weights, TapFlow& flow,
               MlpState& state);
/// Of some routed experts, added to `sums` (float32).
void experts_backward(const Context& ctx, const ExpertRange& range, const Tensor& dout,
                      const Weights& weights, const MlpState& state, const KeepGradient& keep,
                      const RoutedGradients& sums);
/// All but the routed experts, which gave `routed`; or a dense MLP. Returns dy.
Tensor rest_backward(const Context& ctx, int64_t layer, const Tensor& dout, Weights& weights,
                     const MlpState& state, const RoutedGradients& routed, const KeepGradient& keep,
                     TapFlow& flow);
/// Returns dy.
Tensor mlp_backward(const Context& ctx, int64_t layer, const Tensor& dout, Weights& weights,
                    const MlpState& state, const KeepGradient& keep, TapFlow& flow);

}  // namespace dsv32::optimized
