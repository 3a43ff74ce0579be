#include <charconv>
#include <utility>

#include "src/model/weights.h"

namespace dsv32 {

namespace {

constexpr std::string_view kLayers = "model.layers.";

std::string layer_prefix(int64_t layer) {
  return std::string(kLayers) + std::to_string(layer) + ".";
}

using Specs = std::vector<WeightSpec>;

void add_attention(const ModelConfig& c, const std::string& prefix, Specs& specs) {
  const std::string attn = prefix + "self_attn.";
  const std::string indexer = attn + "indexer.";
  const int64_t heads = c.num_attention_heads;
  const int64_t kv_a = c.kv_lora_rank + c.qk_rope_head_dim;
  const int64_t kv_b = heads * (c.qk_nope_head_dim + c.v_head_dim);
  specs.push_back({attn + "q_a_proj.weight", {c.q_lora_rank, c.hidden_size}});
  specs.push_back({attn + "q_a_layernorm.weight", {c.q_lora_rank}});
  specs.push_back({attn + "q_b_proj.weight", {heads * c.qk_head_dim(), c.q_lora_rank}});
  specs.push_back({attn + "kv_a_proj_with_mqa.weight", {kv_a, c.hidden_size}});
  specs.push_back({attn + "kv_a_layernorm.weight", {c.kv_lora_rank}});
  specs.push_back({attn + "kv_b_proj.weight", {kv_b, c.kv_lora_rank}});
  specs.push_back({indexer + "wq_b.weight", {c.index_n_heads * c.index_head_dim, c.q_lora_rank}});
  specs.push_back({indexer + "wk.weight", {c.index_head_dim, c.hidden_size}});
  specs.push_back({indexer + "k_norm.weight", {c.index_head_dim}});
  specs.push_back({indexer + "k_norm.bias", {c.index_head_dim}});
  specs.push_back({indexer + "weights_proj.weight", {c.index_n_heads, c.hidden_size}});
  specs.push_back({attn + "o_proj.weight", {c.hidden_size, heads * c.v_head_dim}});
}

void add_mlp(const ModelConfig& c, const std::string& prefix, int64_t width, Specs& specs) {
  specs.push_back({prefix + "gate_proj.weight", {width, c.hidden_size}});
  specs.push_back({prefix + "up_proj.weight", {width, c.hidden_size}});
  specs.push_back({prefix + "down_proj.weight", {c.hidden_size, width}});
}

void add_moe(const ModelConfig& c, const std::string& prefix, Specs& specs) {
  specs.push_back({prefix + "gate.weight", {c.n_routed_experts, c.hidden_size}});
  specs.push_back({prefix + "gate.e_score_correction_bias", {c.n_routed_experts}});
  for (int64_t expert = 0; expert < c.n_routed_experts; ++expert) {
    add_mlp(c, prefix + "experts." + std::to_string(expert) + ".", c.moe_intermediate_size, specs);
  }
  add_mlp(c, prefix + "shared_experts.", c.moe_intermediate_size * c.n_shared_experts, specs);
}

Specs head_specs(const ModelConfig& c) {
  return {{"model.norm.weight", {c.hidden_size}},
          {"lm_head.weight", {c.vocab_size, c.hidden_size}}};
}

WeightSpec embedding_spec(const ModelConfig& c) {
  return {"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}};
}

std::optional<Shape> shape_in(const Specs& specs, const std::string& name) {
  for (const WeightSpec& spec : specs) {
    if (spec.name == name) return spec.shape;
  }
  return std::nullopt;
}

// Expert tensors by arithmetic: a full layer has 768 of them.
std::optional<Shape> expert_shape(const ModelConfig& c, std::string_view rest) {
  int64_t expert = -1;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), expert);
  const std::string digits(rest.data(), end);
  if (error != std::errc() || expert < 0 || expert >= c.n_routed_experts ||
      digits != std::to_string(expert)) {
    return std::nullopt;
  }
  Specs specs;
  add_mlp(c, ".", c.moe_intermediate_size, specs);
  return shape_in(specs, std::string(rest.substr(digits.size())));
}

}  // namespace

std::vector<WeightSpec> layer_weight_specs(const ModelConfig& config, int64_t layer) {
  Specs specs;
  const std::string prefix = layer_prefix(layer);
  specs.push_back({prefix + "input_layernorm.weight", {config.hidden_size}});
  add_attention(config, prefix, specs);
  specs.push_back({prefix + "post_attention_layernorm.weight", {config.hidden_size}});
  if (config.is_dense_mlp(layer)) {
    add_mlp(config, prefix + "mlp.", config.intermediate_size, specs);
  } else {
    add_moe(config, prefix + "mlp.", specs);
  }
  return specs;
}

std::vector<WeightSpec> weight_specs(const ModelConfig& config) {
  Specs specs = {embedding_spec(config)};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (WeightSpec& spec : layer_weight_specs(config, layer)) specs.push_back(std::move(spec));
  }
  for (WeightSpec& spec : head_specs(config)) specs.push_back(std::move(spec));
  return specs;
}

std::optional<int64_t> weight_layer(std::string_view name) {
  if (!name.starts_with(kLayers)) return std::nullopt;
  name.remove_prefix(kLayers.size());
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const bool complete = end != name.data() + name.size() && *end == '.';
  const bool plain = std::string_view(name.data(), end) == std::to_string(layer);  // no "007"
  if (error != std::errc() || !complete || !plain || layer < 0) return std::nullopt;
  return layer;
}

std::optional<Shape> weight_shape(const ModelConfig& config, const std::string& name) {
  const std::optional<int64_t> layer = weight_layer(name);
  if (!layer) {
    if (name == embedding_spec(config).name) return embedding_spec(config).shape;
    return shape_in(head_specs(config), name);
  }
  if (*layer >= config.num_hidden_layers) return std::nullopt;
  const std::string experts = layer_prefix(*layer) + "mlp.experts.";
  if (name.starts_with(experts)) {
    if (config.is_dense_mlp(*layer)) return std::nullopt;
    return expert_shape(config, std::string_view(name).substr(experts.size()));
  }
  ModelConfig without_experts = config;
  without_experts.n_routed_experts = 0;
  if (name.ends_with("mlp.gate.weight") || is_buffer(name)) without_experts = config;
  return shape_in(layer_weight_specs(without_experts, *layer), name);
}

bool is_buffer(const std::string& weight_name) {
  return weight_name.ends_with("e_score_correction_bias");
}

bool is_indexer(const std::string& weight_name) {
  return weight_name.find(".self_attn.indexer.") != std::string::npos;
}

}  // namespace dsv32
