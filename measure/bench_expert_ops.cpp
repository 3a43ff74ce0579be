// bench_ops: router, experts, loss, embedding, optimizer.

#include <cmath>
#include <limits>

#include "measure/bench_ops.h"

namespace dsv32::suites {
namespace {

const std::vector<at::ScalarType> kBoth = {at::kFloat, at::kBFloat16};

// --- router -------------------------------------------------------------------------------------

struct Routed {
  Tensor logits, bias, experts, weights;

  explicit Routed(const Setting& s)
      : logits(at::randn({s.tokens(), s.config.n_routed_experts})),
        bias(at::randn({s.config.n_routed_experts}) * 0.3) {
    const Tensors out = call_op("route", arguments(s));
    experts = out[0];
    weights = out[1];
  }
  std::vector<c10::IValue> arguments(const Setting& s) const {
    const ModelConfig& c = s.config;
    return {logits,
            bias,
            c.n_group,
            c.topk_group,
            c.num_experts_per_tok,
            c.norm_topk_prob,
            c.routed_scaling_factor};
  }
};

/// [N,E] and [N,k], each read or written once.
Work routing_bytes(const Setting& s, double logits, double choices) {
  const auto n = static_cast<double>(s.tokens());
  return {.bytes = sizeof(float) * n *
                   (logits * static_cast<double>(s.config.n_routed_experts) +
                    choices * static_cast<double>(s.config.num_experts_per_tok))};
}

Tensor eager_weights(const Tensor& logits, const Tensor& experts, const ModelConfig& c) {
  const Tensor chosen = at::sigmoid(logits).gather(-1, experts);
  const Tensor shares =
      c.norm_topk_prob ? chosen / (chosen.sum(-1, /*keepdim=*/true) + 1e-20) : chosen;
  return shares * c.routed_scaling_factor;
}

/// As modelling code has it, with experts in ascending order.
Tensors eager_route(const Routed& r, const ModelConfig& c) {
  const Tensor grouped =
      (at::sigmoid(r.logits) + r.bias).unflatten(-1, {c.n_group, c.n_routed_experts / c.n_group});
  const Tensor group_scores = std::get<0>(grouped.topk(2, -1)).sum(-1);
  const Tensor groups = std::get<1>(group_scores.topk(c.topk_group, -1));
  const Tensor kept = at::zeros_like(group_scores, at::kBool).scatter_(-1, groups, true);
  const Tensor open = grouped.masked_fill(kept.logical_not().unsqueeze(-1),
                                          -std::numeric_limits<double>::infinity());
  const Tensor best = std::get<1>(open.flatten(-2).topk(c.num_experts_per_tok, -1));
  const Tensor experts = std::get<0>(best.sort(-1));
  return {experts, eager_weights(r.logits, experts, c)};
}

OpCase route(const Setting& s) {
  const Routed r(s);
  return {.size = size_of(r.logits),
          .work = routing_bytes(s, 1, 2),  // logits; experts, weights
          .arguments = r.arguments(s),
          .composition = [r, c = s.config] { return eager_route(r, c); }};
}

OpCase routing_weights(const Setting& s) {
  const Routed r(s);
  return {
      .size = size_of(r.logits),
      .work = routing_bytes(s, 1, 2),  // logits; experts, weights
      .arguments = {r.logits, r.experts, s.config.norm_topk_prob, s.config.routed_scaling_factor},
      .composition = [r, experts = r.experts.to(at::kLong), c = s.config] {
        return Tensors{eager_weights(r.logits, experts, c)};
      }};
}

OpCase route_backward(const Setting& s) {
  const Routed r(s);
  const Tensor dweights = at::randn(r.weights.sizes());
  const auto forward = [experts = r.experts.to(at::kLong), c = s.config](const Tensors& in) {
    return Tensors{eager_weights(in[0], experts, c)};
  };
  return {.size = size_of(r.logits),
          .work = routing_bytes(s, 2, 2),  // logits, dlogits; dweights, experts
          .arguments = {dweights, r.logits, r.experts, s.config.norm_topk_prob,
                        s.config.routed_scaling_factor},
          .composition = autograd_of(forward, {r.logits}, {dweights})};
}

// --- experts ------------------------------------------------------------------------------------

/// Weights of `count` experts that keep the size of what goes through.
Tensors matrices(const Setting& s, int64_t out, int64_t in) {
  Tensors all;
  for (int64_t e = 0; e < s.config.n_routed_experts; ++e)
    all.push_back((at::randn({out, in}) / std::sqrt(static_cast<double>(in))).to(s.dtype));
  return all;
}

struct Moe {
  Tensor x, dout;
  Routed routed;
  Tensors gate, up, down;

  explicit Moe(const Setting& s)
      : x(s.normal({s.tokens(), s.config.hidden_size})),
        dout(s.normal(x.sizes())),
        routed(s),
        gate(matrices(s, s.config.moe_intermediate_size, s.config.hidden_size)),
        up(matrices(s, s.config.moe_intermediate_size, s.config.hidden_size)),
        down(matrices(s, s.config.hidden_size, s.config.moe_intermediate_size)) {}
  /// x, weights, gates, ups, downs.
  Tensors leaves() const {
    Tensors all = {x, routed.weights};
    for (const Tensors* list : {&gate, &up, &down})
      all.insert(all.end(), list->begin(), list->end());
    return all;
  }
};

/// The loop over experts of modelling code, on `leaves` of Moe.
Tensors eager_moe(const Tensors& leaves, const Tensor& chosen) {
  const size_t count = (leaves.size() - 2) / 3;
  const Tensor &x = leaves[0], &weights = leaves[1];
  const Tensor *gate = &leaves[2], *up = gate + count, *down = up + count;
  Tensor out = at::zeros(x.sizes(), x.options());
  for (size_t e = 0; e < count; ++e) {
    const Tensors hits = at::where(chosen == static_cast<int64_t>(e));
    const Tensor rows = x.index_select(0, hits[0]);
    const Tensor inner = at::silu(rows.mm(gate[e].t())) * rows.mm(up[e].t());
    const Tensor weight = at::index(weights, {hits[0], hits[1]}).unsqueeze(-1);
    out = out.index_add(0, hits[0], (inner.mm(down[e].t()) * weight).to(x.scalar_type()));
  }
  return {out};
}

/// `matrices` products of each chosen expert's [hidden,width] with a token.
Work expert_products(const Setting& s, double matrices) {
  const ModelConfig& c = s.config;
  return {.flops = 2 * matrices * static_cast<double>(s.tokens() * c.num_experts_per_tok) *
                   static_cast<double>(c.hidden_size * c.moe_intermediate_size)};
}

OpCase moe(const Setting& s) {
  const Moe m(s);
  return {.size = size_of(m.x) + ", " + std::to_string(m.gate.size()) + " experts",
          .work = expert_products(s, 3),  // gate, up, down
          .arguments = {m.x, m.routed.experts, m.routed.weights, m.gate, m.up, m.down},
          .composition = [=] { return eager_moe(m.leaves(), m.routed.experts); }};
}

/// The same experts, added to a float32 sum: a part of them at a time, when not all fit.
OpCase moe_add(const Setting& s) {
  const Moe m(s);
  const Tensor sum = at::zeros(m.x.sizes(), m.x.options().dtype(at::kFloat));
  return {.size = size_of(m.x),
          .work = expert_products(s, 3),
          .arguments = {sum, m.x, m.routed.experts, m.routed.weights, m.gate, m.up, m.down},
          .composition = [=] { return Tensors{sum + eager_moe(m.leaves(), m.routed.experts)[0]}; }};
}

OpCase moe_backward(const Setting& s) {
  const Moe m(s);
  const auto forward = [chosen = m.routed.experts](const Tensors& in) {
    return eager_moe(in, chosen);
  };
  return {.size = size_of(m.x) + ", " + std::to_string(m.gate.size()) + " experts",
          .work = expert_products(s, 8),  // gate, up again; dinner, two dx; three dweights
          .arguments = {m.dout, m.x, m.routed.experts, m.routed.weights, m.gate, m.up, m.down},
          .composition = autograd_of(forward, m.leaves(), {m.dout})};
}

/// The same, dx added to a float32 sum.
OpCase moe_backward_add(const Setting& s) {
  const Moe m(s);
  const Tensor sum = at::zeros(m.x.sizes(), m.x.options().dtype(at::kFloat));
  const auto forward = [chosen = m.routed.experts](const Tensors& in) {
    return eager_moe(in, chosen);
  };
  return {.size = size_of(m.x),
          .work = expert_products(s, 8),
          .arguments = {sum, m.dout, m.x, m.routed.experts, m.routed.weights, m.gate, m.up, m.down},
          .composition = [run = autograd_of(forward, m.leaves(), {m.dout})] {
            Tensors gradients = run();
            gradients[0] = gradients[0].to(at::kFloat);
            return gradients;
          }};
}

// --- loss and embedding -------------------------------------------------------------------------

struct Head {
  Tensor x, weight, labels;

  explicit Head(const Setting& s)
      : x(s.normal({s.tokens(), s.config.hidden_size})),
        weight((at::randn({s.config.vocab_size, x.size(1)}) / std::sqrt(double(x.size(1))))
                   .to(s.dtype)),
        labels(at::randint(s.config.vocab_size, {s.tokens()})) {}
};

Tensors eager_loss(const Tensors& in, const Tensor& labels) {
  return {at::cross_entropy_loss(in[0].mm(in[1].t()).to(at::kFloat), labels)};
}

/// `count` products of [N,hidden] with [vocab,hidden].
Work head_products(const Setting& s, double count) {
  return {.flops = 2 * count * static_cast<double>(s.tokens()) *
                   static_cast<double>(s.config.hidden_size * s.config.vocab_size)};
}

OpCase linear_cross_entropy(const Setting& s) {
  const Head h(s);
  return {.size = size_of(h.x) + ", vocabulary " + std::to_string(h.weight.size(0)),
          .work = head_products(s, 1),  // logits
          .arguments = {h.x, h.weight, h.labels},
          .composition = [=] {
            return eager_loss({h.x, h.weight}, h.labels);
          }};
}

OpCase linear_cross_entropy_backward(const Setting& s) {
  const Head h(s);
  const Tensor lse = call_op("linear_cross_entropy", {h.x, h.weight, h.labels})[1];
  const Tensor dloss = at::ones({});
  const auto forward = [labels = h.labels](const Tensors& in) { return eager_loss(in, labels); };
  return {.size = size_of(h.x) + ", vocabulary " + std::to_string(h.weight.size(0)),
          .work = head_products(s, 3),  // logits again, dx, dweight
          .arguments = {dloss, h.x, h.weight, h.labels, lse},
          .composition = autograd_of(forward, {h.x, h.weight}, {dloss})};
}

OpCase embedding_backward(const Setting& s) {
  const Tensor dout = s.normal({s.tokens(), s.config.hidden_size});
  const int64_t vocab = s.config.vocab_size;
  const Tensor ids = at::randint(vocab, {s.tokens()});
  return {.size = size_of(dout) + ", vocabulary " + std::to_string(vocab),
          .work = {.bytes = s.width() * static_cast<double>(dout.numel() + vocab * dout.size(1))},
          .arguments = {dout, ids, vocab},
          .composition = [=] {
            return Tensors{at::embedding_dense_backward(dout, ids, vocab, -1, false)};
          }};
}

// --- optimizer ----------------------------------------------------------------------------------

constexpr double kLr = 1e-3, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kDecay = 0.1;
constexpr int64_t kStep = 10;

/// Tensors of the size of one layer's routed experts.
Tensors expert_weights(const Setting& s) {
  const int64_t hidden = s.config.hidden_size, width = s.config.moe_intermediate_size;
  Tensors all;
  for (const auto& list :
       {matrices(s, width, hidden), matrices(s, width, hidden), matrices(s, hidden, width)})
    all.insert(all.end(), list.begin(), list.end());
  return all;
}

double elements(const Tensors& tensors) {
  double sum = 0;
  for (const Tensor& tensor : tensors) sum += static_cast<double>(tensor.numel());
  return sum;
}

std::string count_of(const Tensors& tensors) {
  return std::to_string(tensors.size()) + " tensors, " + std::to_string(int64_t(elements(tensors)));
}

struct Adamw {
  Tensors parameters, gradients, exp_avg, exp_avg_sq;
  Tensor clip = at::full({}, 0.5f);
};

/// One step, tensor by tensor, as torch.optim.AdamW without foreach and fused.
Tensors eager_adamw(const Adamw& a) {
  const double correction1 = 1 - std::pow(kBeta1, kStep);
  const double correction2 = std::sqrt(1 - std::pow(kBeta2, kStep));
  for (size_t i = 0; i < a.parameters.size(); ++i) {
    const Tensor gradient = a.gradients[i] * a.clip;
    a.parameters[i].mul_(1 - kLr * kDecay);
    a.exp_avg[i].lerp_(gradient, 1 - kBeta1);
    a.exp_avg_sq[i].mul_(kBeta2).addcmul_(gradient, gradient, 1 - kBeta2);
    const Tensor size = (a.exp_avg_sq[i].sqrt() / correction2).add_(kEps);
    a.parameters[i].addcdiv_(a.exp_avg[i], size, -kLr / correction1);
  }
  return a.parameters;
}

Tensors clones(const Tensors& tensors) {
  Tensors all;
  for (const Tensor& tensor : tensors) all.push_back(tensor.clone());
  return all;
}

OpCase adamw(const Setting& s) {
  Adamw a{expert_weights(s), expert_weights(s), expert_weights(s), expert_weights(s)};
  for (const Tensor& square : a.exp_avg_sq) square.square_();
  const Adamw other{clones(a.parameters), a.gradients, clones(a.exp_avg), clones(a.exp_avg_sq)};
  return {
      .size = count_of(a.parameters),
      .work = {.bytes = 7 * sizeof(float) * elements(a.parameters)},  // four read, three written
      .arguments = {a.parameters, a.gradients, a.exp_avg, a.exp_avg_sq, kStep, kLr, kBeta1, kBeta2,
                    kEps, kDecay, a.clip},
      .composition = [other] { return eager_adamw(other); }};
}

OpCase grad_norm(const Setting& s) {
  const Tensors gradients = expert_weights(s);
  return {.size = count_of(gradients),
          .work = {.bytes = s.width() * elements(gradients)},
          .arguments = {gradients},
          .composition = [=] {
            Tensors norms;
            for (const Tensor& gradient : gradients) norms.push_back(gradient.norm());
            return Tensors{at::stack(norms).norm()};
          }};
}

}  // namespace

std::vector<OpEntry> expert_ops() {
  return {
      {"route", "", {at::kFloat}, route},
      {"routing_weights", "", {at::kFloat}, routing_weights},
      {"route_backward", "", {at::kFloat}, route_backward},
      {"moe", "", kBoth, moe},
      {"moe_add", "", kBoth, moe_add},
      {"moe_backward", "", kBoth, moe_backward},
      {"moe_backward_add", "", kBoth, moe_backward_add},
      {"linear_cross_entropy", "", kBoth, linear_cross_entropy},
      {"linear_cross_entropy_backward", "", kBoth, linear_cross_entropy_backward},
      {"embedding_backward", "", kBoth, embedding_backward},
      {"adamw_", "", {at::kFloat}, adamw},
      {"grad_norm", "", kBoth, grad_norm},
  };
}

}  // namespace dsv32::suites
