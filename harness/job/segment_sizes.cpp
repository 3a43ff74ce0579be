#include "harness/job/segment_sizes.h"

#include "src/model/trace.h"

namespace dsv32::harness {

double count(const Shape& shape) {
  double product = 1;
  for (const int64_t size : shape) product *= static_cast<double>(size);
  return product;
}

double tap_elements(const Case& c, const std::string& name) {
  const TapName tap = *parse_tap(name);
  auto shape = tap_shape(tap, c.config, c.B, c.S);
  if (!shape) return 0;
  if (tap.info.kind == TapKind::attention)
    (*shape)[2] = static_cast<int64_t>(kept_queries(c.config, c.B, c.S).size());
  if (tap.info.name == "logits")
    (*shape)[1] = static_cast<int64_t>(kept_logit_rows(c.config, c.B, c.S).size());
  return count(*shape);
}

/// Elements of one expert's three matrices.
double expert_elements(const ModelConfig& config) {
  return 3 * count({config.hidden_size, config.moe_intermediate_size});
}

bool has_experts(const Case& c, const Segment& segment) {
  return segment.kind == SegmentKind::mlp && !c.config.is_dense_mlp(segment.layer);
}

double segment_weights(const Case& c, const Segment& segment) {
  const double tokens = count({c.B, c.S}), width = static_cast<double>(c.config.hidden_size);
  if (segment.kind == SegmentKind::embed) return tokens * width;
  double sum = 0;
  for (const WeightSpec& spec : segment_specs(c.config, segment)) sum += count(spec.shape);
  return sum;
}

double attention_flops(const Case& c) {
  const ModelConfig& config = c.config;
  return 2 * count({c.B, c.S, c.S}) * static_cast<double>(config.num_attention_heads) *
         static_cast<double>(config.qk_head_dim() + config.v_head_dim);
}

double segment_flops(const Case& c, const Segment& segment) {
  const ModelConfig& config = c.config;
  const double tokens = count({c.B, c.S});
  double products = 0;
  for (const WeightSpec& spec : segment_specs(config, segment)) {
    const bool routed = spec.name.find(".mlp.experts.") != std::string::npos;
    if (spec.shape.size() == 2 && !routed) products += tokens * count(spec.shape);
  }
  if (segment.kind == SegmentKind::embed) products = 0;
  if (has_experts(c, segment))
    products += tokens * static_cast<double>(config.num_experts_per_tok) * expert_elements(config);
  if (segment.kind == SegmentKind::attention)
    products += count({c.B, c.S, c.S}) * count({config.index_n_heads, config.index_head_dim}) +
                attention_flops(c) / 2;
  return 2 * products;
}

}  // namespace dsv32::harness
