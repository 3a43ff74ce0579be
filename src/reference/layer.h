#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/bridge/tap_flow.h"
#include "src/reference/ops.h"

namespace dsv32::reference {

/// What the layers hand on: the residual stream as stored, and its last sum before rounding (norms
/// read that one).
struct Residual {
  Tensor sum;     // [B,S,hidden]
  Tensor hidden;  // the tap: rounded in the 16-bit modes
};

/// Keys of earlier chunks of one layer.
struct LayerCache {
  Tensor kv_latent;  // [B,T,kv_lora]
  Tensor k_rope;     // [B,T,rope]
  Tensor ix_k;       // [B,T,D_I]
  Tensor kl_sum;     // [] sum of the KL of the valid queries so far
};

/// What one chunk brings besides the residual stream.
struct ChunkInputs {
  RopeTable rope;   // of its S query positions
  Tensor visible;   // [B,S,T] bool: keys that each query may see
  Tensor causal;    // [B,S,T] bool: no later ones
  Tensor unpadded;  // [B,S,T] bool: no padding
  Tensor valid;     // [B,S] bool: queries that are no padding
};

/// Keys that a query may see under a variant of the mask, [B,S,T] bool.
Tensor visible_under(Mask mask, const ChunkInputs& chunk);

/// One transformer layer: h += attention(norm(h)), then h += mlp(norm(h)). docs/spec.md 1.
Residual run_layer(const Context& ctx, int64_t layer, LayerWeights& weights, const Residual& in,
                   const ChunkInputs& chunk, LayerCache& cache, TapFlow& flow);
/// Its two halves, each from the residual stream before it to the one behind it.
Residual run_attention_half(const Context& ctx, int64_t layer, LayerWeights& weights,
                            const Residual& in, const ChunkInputs& chunk, LayerCache& cache,
                            TapFlow& flow);
Residual run_mlp_half(const Context& ctx, int64_t layer, LayerWeights& weights,
                      const Residual& middle, const ChunkInputs& chunk, LayerCache& cache,
                      TapFlow& flow);
/// Its attention alone: all that the indexer's KL (cache.kl_sum) depends on.
void run_attention(const Context& ctx, int64_t layer, LayerWeights& weights, const Residual& in,
                   const ChunkInputs& chunk, LayerCache& cache, TapFlow& flow);

// --- layer_backward.cpp -------------------------------------------------------------------------
// The backward pass of a half of a layer, its large parts one after the other, so that no more than
// one of them is held. The flow replays decisions.

/// Called with weights whose gradients are complete: nobody reads them any more.
using Finished = std::function<void(const std::vector<std::string>& names)>;
/// `in`: a leaf and what is stored of it; `upstream`: the gradient by the stream behind the half.
/// The leaf has its gradient afterwards. Queries go in blocks whose rows are computed again.
void attention_half_backward(const Context& ctx, int64_t layer, LayerWeights& weights,
                             const Residual& in, const ChunkInputs& chunk, const Tensor& upstream,
                             TapFlow& flow, const Finished& finished);

/// What the routed experts hand back to the MLP's input [N,hidden] and to the routing weights
/// [N,K], summed over them.
struct ExpertGradients {
  Tensor dy, dweights;
};
/// Adds those of some experts to `sums`.
void experts_backward(const Context& ctx, int64_t layer, LayerWeights& weights,
                      const Residual& middle, const ExpertRange& experts, const Tensor& upstream,
                      TapFlow& flow, const Finished& finished, ExpertGradients& sums);
/// Everything but the routed experts; `sums` undefined: of a dense MLP.
void mlp_half_backward(const Context& ctx, int64_t layer, LayerWeights& weights,
                       const Residual& middle, const Tensor& upstream, const ExpertGradients& sums,
                       TapFlow& flow, const Finished& finished);

}  // namespace dsv32::reference
