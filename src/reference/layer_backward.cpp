#include "src/reference/layer_parts.h"

namespace dsv32::reference {
namespace {

Tensor leaf_of(const Tensor& value) {
  return value.defined() ? value.detach().requires_grad_(true) : value;
}

Tensor zero_sum_of(const Tensor& value) {
  return value.defined() ? torch::zeros_like(value) : value;
}

void add_to_sum(const Tensor& gradient, const Tensor& sum) {
  if (gradient.defined()) sum.add_(gradient);
}

/// The tensors between what attention reads and its rows.
struct FrontGradients {
  Tensor q, k, v, value_map, scores;

  explicit FrontGradients(const AttentionFront& front)
      : q(zero_sum_of(front.operands.q)),
        k(zero_sum_of(front.operands.k)),
        v(zero_sum_of(front.operands.v)),
        value_map(zero_sum_of(front.operands.value_map)),
        scores(zero_sum_of(front.indexed.scores)) {}
};

/// The values alone: each block has a graph of its own.
AttentionFront detached(const AttentionFront& front) {
  const auto values = [](const Tensor& x) { return x.defined() ? x.detach() : x; };
  const AttentionOperands& all = front.operands;
  return {{values(all.q), values(all.k), values(all.v), values(all.value_map)},
          {front.indexed.support, values(front.indexed.scores)}};
}

/// What the rows of all queries hand back, block by block.
FrontGradients rows_backward(Layer& layer, const AttentionFront& front, const Tensor& dcontext) {
  FrontGradients sums(front);
  const int64_t S = dcontext.size(1), step = layer.queries_together();
  for (int64_t first = 0; first < S; first += step) {
    const int64_t count = std::min(step, S - first);
    AttentionBlock block = layer.block_of(front, first, count);
    AttentionOperands& operands = block.operands;
    for (Tensor* t :
         {&operands.q, &operands.k, &operands.v, &operands.value_map, &block.indexed.scores})
      *t = leaf_of(*t);
    layer.attend(block).backward(dcontext.narrow(1, first, count));
    add_to_sum(operands.q.grad(), sums.q.narrow(2, first, count));
    add_to_sum(operands.k.grad(), sums.k.narrow(2, 0, operands.k.size(2)));
    add_to_sum(operands.v.grad(), sums.v.narrow(2, 0, operands.v.size(2)));
    if (operands.value_map.defined()) add_to_sum(operands.value_map.grad(), sums.value_map);
    const Tensor& scores = block.indexed.scores;
    if (scores.defined())
      add_to_sum(scores.grad(), sums.scores.narrow(1, first, count).narrow(2, 0, scores.size(2)));
  }
  return sums;
}

/// What a dense MLP hands back to its input; its gradients add up over blocks of tokens.
Tensor dense_backward(Layer& layer, const Tensor& y, const Tensor& dout) {
  constexpr int64_t kTokens = 1024;
  const Tensor rows = y.flatten(0, 1), upstream = dout.flatten(0, 1), dy = torch::zeros_like(rows);
  for (int64_t first = 0; first < rows.size(0); first += kTokens) {
    const int64_t count = std::min(kTokens, rows.size(0) - first);
    const Tensor some = leaf_of(rows.narrow(0, first, count));
    layer.dense_mlp(some).backward(upstream.narrow(0, first, count));
    dy.narrow(0, first, count).copy_(some.grad());
  }
  return dy.view_as(y);
}

/// The gradient by attn.ctx before it is rounded; that of o_proj is complete.
Tensor context_gradient(Layer& layer, const AttentionFront& front, const Tensor& upstream) {
  const Tensor context = [&] {
    torch::NoGradGuard no_grad;
    return layer.context_of(front);
  }();
  const Tensor leaf = leaf_of(context);
  layer.attention_out(leaf).backward(upstream);
  return leaf.grad();
}

}  // namespace

void attention_half_backward(const Context& ctx, int64_t layer, LayerWeights& weights,
                             const Residual& in, const ChunkInputs& chunk, const Tensor& upstream,
                             TapFlow& flow, const Finished& finished) {
  LayerCache cache;
  Layer pieces(ctx, layer, weights, chunk, cache, flow);
  const Tensor x = pieces.attention_input(in);
  AttentionFront front;
  pieces.make_front(x, front);
  cache = {};
  const AttentionFront values = detached(front);
  Tensor dcontext = context_gradient(pieces, values, upstream);
  finished({"self_attn.o_proj.weight"});
  const FrontGradients d = rows_backward(pieces, values, dcontext);
  dcontext = Tensor();
  std::vector<Tensor> roots = {pieces.stream_before(in, x)}, factors = {upstream};
  const auto add_root = [&](const Tensor& root, const Tensor& factor) {
    if (!root.defined() || !root.requires_grad()) return;
    roots.push_back(root);
    factors.push_back(factor);
  };
  add_root(front.operands.q, d.q);
  add_root(front.operands.k, d.k);
  add_root(front.operands.v, d.v);
  add_root(front.operands.value_map, d.value_map);
  add_root(front.indexed.scores, d.scores);
  torch::autograd::backward(roots, factors);
  finished({"input_layernorm.weight", "self_attn.q_a_proj.weight", "self_attn.q_a_layernorm.weight",
            "self_attn.q_b_proj.weight", "self_attn.kv_a_proj_with_mqa.weight",
            "self_attn.kv_a_layernorm.weight", "self_attn.kv_b_proj.weight"});
}

void experts_backward(const Context& ctx, int64_t layer, LayerWeights& weights,
                      const Residual& middle, const ExpertRange& experts, const Tensor& upstream,
                      TapFlow& flow, const Finished& finished, ExpertGradients& sums) {
  LayerCache cache;
  const ChunkInputs none;
  Layer pieces(ctx, layer, weights, none, cache, flow);
  Tensor y;
  Routing routing;
  {
    torch::NoGradGuard no_grad;
    y = pieces.mlp_input(middle);
    routing = pieces.route(y);
  }
  // Of a sum: its values play no part.
  const Tensor routed = leaf_of(torch::zeros_like(y));
  pieces.mlp_out(pieces.put("moe.routed", routed), torch::zeros_like(y)).backward(upstream);
  const Tensor tokens = y.flatten(0, 1), drouted = routed.grad().flatten(0, 1);
  const Tensor chosen = routing.experts.flatten(0, 1), weight = routing.weights.flatten(0, 1);
  for (int64_t e = experts.first; e < experts.last; ++e) {
    const auto hits = torch::where(chosen == e);
    if (hits[0].numel() > 0) {
      const Tensor rows = leaf_of(tokens.index_select(0, hits[0]));
      const Tensor scales = leaf_of(weight.index({hits[0], hits[1]}));
      expert_rows(ctx, e, rows, scales, weights).backward(drouted.index_select(0, hits[0]));
      sums.dy.index_add_(0, hits[0], rows.grad());
      sums.dweights.index_put_({hits[0], hits[1]}, scales.grad());
    }
    const std::string prefix = "mlp.experts." + std::to_string(e) + ".";
    finished({prefix + "down_proj.weight", prefix + "gate_proj.weight", prefix + "up_proj.weight"});
  }
}

void mlp_half_backward(const Context& ctx, int64_t layer, LayerWeights& weights,
                       const Residual& middle, const Tensor& upstream, const ExpertGradients& sums,
                       TapFlow& flow, const Finished& finished) {
  LayerCache cache;
  const ChunkInputs none;
  Layer pieces(ctx, layer, weights, none, cache, flow);
  const Tensor y = pieces.mlp_input(middle);
  const std::string norm = "post_attention_layernorm.weight";
  if (!sums.dy.defined()) {
    const Tensor dy = dense_backward(pieces, y.detach(), upstream);
    finished({"mlp.down_proj.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight"});
    torch::autograd::backward({middle.hidden, y}, {upstream, dy});
    return finished({norm});
  }
  const Routing routing = pieces.route(y);
  const Tensor routed = torch::zeros_like(y);
  const Tensor sum = middle.hidden + pieces.mlp_out(routed, pieces.shared_experts(y));
  torch::autograd::backward({sum, y, routing.weights},
                            {upstream, sums.dy.view_as(y), sums.dweights.view_as(routing.weights)});
  const std::string shared = "mlp.shared_experts.";
  finished({shared + "down_proj.weight", shared + "gate_proj.weight", shared + "up_proj.weight",
            "mlp.gate.weight", norm});
}

}  // namespace dsv32::reference
