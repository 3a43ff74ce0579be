#include "harness/job/backward_work.h"

#include <algorithm>

#include "harness/job/segment_sizes.h"

namespace dsv32::harness {
namespace {

// Tensors of the stream's size: the input and what is stored of it, its norm, the gradients by all
// three, the one that came.
constexpr double kStreams = 7;
constexpr double kBlockCopies = 6;        // logits, probabilities, their gradients
constexpr double kInnerCopies = 7;        // of a dense MLP: gate, up, their product, gradients
constexpr double kTokensTogether = 1024;  // in a dense MLP
constexpr double kStepCopies = 8;    // float32: weight, gradient, moments, what the step works on
constexpr double kWithGradient = 2;  // a weight and its gradient

double tokens_of(const Case& c) { return count({c.B, c.S}); }
double stream_of(const Case& c) { return tokens_of(c) * static_cast<double>(c.config.hidden_size); }

double attention_bytes(const Case& c, const Segment& segment) {
  const ModelConfig& config = c.config;
  const double heads = tokens_of(c) * static_cast<double>(config.num_attention_heads);
  const double qk = static_cast<double>(config.qk_head_dim());
  const double nope = static_cast<double>(config.qk_nope_head_dim);
  const double v = static_cast<double>(config.v_head_dim);
  const double out = count({config.hidden_size, config.num_attention_heads, config.v_head_dim});
  const double rest = segment_weights(c, segment) - out;
  const double block =
      count({c.B, config.num_attention_heads, queries_at_once(config, c.B, c.S), c.S});
  const double operands = heads * (2 * qk + nope + v);  // whole, until the front goes back
  const double at_out = operands + heads * 3 * v + kWithGradient * out;
  const double at_rows = operands + heads * (2 * qk + 2 * v) + kBlockCopies * block;
  const double at_front = heads * (4 * qk + 2 * nope + 2 * v) + kWithGradient * rest;
  return kOracleBytes * (kStreams * stream_of(c) + rest + std::max({at_out, at_rows, at_front}));
}

double mlp_bytes(const Case& c, const Segment& segment) {
  const ModelConfig& config = c.config;
  const double streams = kStreams * stream_of(c), weights = segment_weights(c, segment);
  if (!has_experts(c, segment)) {
    const double inner = kInnerCopies * std::min(tokens_of(c), kTokensTogether) *
                         static_cast<double>(config.intermediate_size);
    return kOracleBytes * (streams + inner + kWithGradient * weights);
  }
  const double expert = expert_elements(config);
  const double rest = weights - static_cast<double>(config.n_routed_experts) * expert;
  const ExpertRange first = expert_ranges(config).front();
  const double together = static_cast<double>(first.last - first.first) * expert;
  return std::max(kOracleBytes * (streams + kWithGradient * std::max(rest, expert)),
                  kPlainBytes * (streams + kWithGradient * together));
}

double largest_matrix(const Case& c, const Segment& segment) {
  double largest = 0;
  for (const WeightSpec& spec : segment_specs(c.config, segment))
    largest = std::max(largest, count(spec.shape));
  return largest;
}

}  // namespace

double backward_flops(const Case& c, const Segment& segment) {
  constexpr double kPasses = 3;
  const double rows = segment.kind == SegmentKind::attention ? attention_flops(c) : 0;
  return kPasses * segment_flops(c, segment) + rows;  // which are computed once more
}

double backward_bytes(const Case& c, const Segment& segment) {
  const double pass =
      segment.kind == SegmentKind::attention ? attention_bytes(c, segment) : mlp_bytes(c, segment);
  return std::max(pass, kPlainBytes * kStepCopies * largest_matrix(c, segment));
}

double gradients_together(const Case& c, const Segment& segment) {
  const double weights = segment_weights(c, segment);
  if (!has_experts(c, segment)) return weights;
  const ExpertRange first = expert_ranges(c.config).front();
  return static_cast<double>(first.last - first.first) * expert_elements(c.config);
}

}  // namespace dsv32::harness
