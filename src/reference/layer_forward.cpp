#include "src/reference/layer_parts.h"

namespace dsv32::reference {

Tensor visible_under(Mask mask, const ChunkInputs& chunk) {
  switch (mask) {
    case Mask::right:
      return chunk.visible;
    case Mask::no_causal:
      return chunk.unpadded;
    case Mask::no_padding:
      return chunk.causal;
    case Mask::none:
    case Mask::added:
      break;
  }
  return torch::ones_like(chunk.visible);
}

Residual run_layer(const Context& ctx, int64_t layer, LayerWeights& weights, const Residual& in,
                   const ChunkInputs& chunk, LayerCache& cache, TapFlow& flow) {
  return Layer(ctx, layer, weights, chunk, cache, flow).run(in);
}

void run_attention(const Context& ctx, int64_t layer, LayerWeights& weights, const Residual& in,
                   const ChunkInputs& chunk, LayerCache& cache, TapFlow& flow) {
  Layer(ctx, layer, weights, chunk, cache, flow).run_attention_alone(in);
}

Residual run_attention_half(const Context& ctx, int64_t layer, LayerWeights& weights,
                            const Residual& in, const ChunkInputs& chunk, LayerCache& cache,
                            TapFlow& flow) {
  return Layer(ctx, layer, weights, chunk, cache, flow).run_attention(in);
}

Residual run_mlp_half(const Context& ctx, int64_t layer, LayerWeights& weights,
                      const Residual& middle, const ChunkInputs& chunk, LayerCache& cache,
                      TapFlow& flow) {
  return Layer(ctx, layer, weights, chunk, cache, flow).run_mlp(middle);
}

}  // namespace dsv32::reference
