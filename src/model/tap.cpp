#include <algorithm>
#include <array>
#include <charconv>

#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32 {

namespace {

constexpr std::string_view kLayers = "layers.", kSlope = "dtap.";

std::vector<TapInfo> make_vocabulary() {
  using enum TapKind;
  return {
      {"embed", token, false, {}},
      {"attn_norm", token, true, {"hidden"}},
      {"q_latent", token, true, {"attn_norm"}},
      {"kv_latent", token, true, {"attn_norm"}},
      {"q_nope", token, true, {"q_latent"}},
      {"q_rope", token, true, {"q_latent"}},
      {"k_rope", token, true, {"attn_norm"}},
      {"ix.q", token, true, {"q_latent"}},
      {"ix.k", key, true, {"attn_norm"}},
      {"ix.weights", token, true, {"attn_norm"}},
      {"ix.scores", scores, true, {"ix.q", "ix.k", "ix.weights"}},
      {"topk", topk, true, {"ix.scores"}},
      {"attn.logits", attention, true, {"q_nope", "q_rope", "kv_latent", "k_rope"}},
      {"attn.probs", attention, true, {"attn.logits", "topk"}},
      {"attn.ctx", token, true, {"attn.probs", "kv_latent"}},
      {"attn.out", token, true, {"attn.ctx"}},
      {"ffn_norm", token, true, {"hidden", "attn.out"}},
      {"router.logits", token, true, {"ffn_norm"}},
      {"router.experts", experts, true, {"router.logits"}},
      {"router.weights", token, true, {"router.logits", "router.experts"}},
      {"moe.routed", token, true, {"ffn_norm", "router.experts", "router.weights"}},
      {"moe.shared", token, true, {"ffn_norm"}},
      {"mlp.out", token, true, {"moe.routed", "moe.shared"}},
      {"hidden", token, true, {"hidden", "attn.out", "mlp.out"}},
      {"final_norm", token, false, {"hidden"}},
      {"logits", token, false, {"final_norm"}},
      {"loss.lm", scalar, false, {"logits"}},
      {"kl.target", keys, true, {"attn.probs"}},
      {"kl.student", keys, true, {"ix.scores", "topk"}},
      {"kl.rows", token, true, {"kl.target", "ix.scores", "topk"}},
      {"kl.dscores", keys, true, {"kl.target", "ix.scores", "topk"}},
      {"loss.kl", scalar, true, {"kl.rows"}},
      {"loss.kl", scalar, false, {}},
      {"train.loss", series, false, {}},
      {"train.grad_norm", series, false, {}},
      {"train.kl", series, false, {}},
      {"gen.tokens", series, false, {}},
      {"gen.logits", series, false, {}},
  };
}

const TapInfo* find_info(std::string_view name, bool per_layer) {
  for (const TapInfo& info : tap_vocabulary()) {
    if (info.name == name && info.per_layer == per_layer) return &info;
  }
  return nullptr;
}

// "3.attn.ctx" -> 3 and "attn.ctx".
std::optional<std::pair<int64_t, std::string_view>> split_layer(std::string_view text) {
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  const std::string_view digits(text.data(), end);
  if (error != std::errc() || layer < 0 || digits != std::to_string(layer)) return std::nullopt;
  text.remove_prefix(digits.size());
  if (!text.starts_with('.')) return std::nullopt;
  return std::pair{layer, text.substr(1)};
}

// "grad.<weight>" and "param.<weight>".
std::optional<TapName> parse_weight_tap(const std::string& full) {
  static const std::array<TapInfo, 2> kinds = {
      {{"grad", TapKind::gradient, false, {}}, {"param", TapKind::gradient, false, {}}}};
  for (const TapInfo& info : kinds) {
    const std::string prefix = std::string(info.name) + ".";
    if (!full.starts_with(prefix)) continue;
    const std::string_view weight = std::string_view(full).substr(prefix.size());
    const bool plausible = weight.starts_with("model.") || weight.starts_with("lm_head.");
    const std::optional<int64_t> layer = weight_layer(weight);
    if (!plausible || (weight.starts_with("model.layers.") && !layer)) return std::nullopt;
    return TapName{full, layer, info};
  }
  return std::nullopt;
}

bool is_moe_only(std::string_view name) {
  return name.starts_with("router.") || name.starts_with("moe.");
}

// Shapes of docs/formats.md 4 by name; the sizes that several taps share have one line.
std::optional<Shape> shape_by_name(std::string_view name, const ModelConfig& c, int64_t B,
                                   int64_t S) {
  const auto is = [name](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const int64_t T = S;
  const int64_t H = c.num_attention_heads;
  if (name == "q_latent") return Shape{B, S, c.q_lora_rank};
  if (name == "kv_latent") return Shape{B, S, c.kv_lora_rank};
  if (name == "q_nope") return Shape{B, S, H, c.qk_nope_head_dim};
  if (name == "q_rope") return Shape{B, S, H, c.qk_rope_head_dim};
  if (name == "k_rope") return Shape{B, S, c.qk_rope_head_dim};
  if (name == "ix.q") return Shape{B, S, c.index_n_heads, c.index_head_dim};
  if (name == "ix.k") return Shape{B, T, c.index_head_dim};
  if (name == "ix.weights") return Shape{B, S, c.index_n_heads};
  if (is({"ix.scores", "kl.target", "kl.student", "kl.dscores"})) return Shape{B, S, T};
  if (name == "topk") return Shape{B, S, c.index_topk};
  if (is({"attn.logits", "attn.probs"})) return Shape{B, H, S, T};
  if (name == "attn.ctx") return Shape{B, S, H, c.v_head_dim};
  if (name == "router.logits") return Shape{B, S, c.n_routed_experts};
  if (is({"router.experts", "router.weights"})) return Shape{B, S, c.num_experts_per_tok};
  if (name == "logits") return Shape{B, S, c.vocab_size};
  if (name == "kl.rows") return Shape{B, S};
  if (is({"loss.lm", "loss.kl"})) return Shape{};
  if (name.starts_with("train.") || name.starts_with("gen.")) return std::nullopt;
  return Shape{B, S, c.hidden_size};
}

// The indexer's, which have a gradient from the KL alone, in back-propagation order.
constexpr std::array<std::string_view, 5> kIndexerBackwards = {
    "self_attn.indexer.weights_proj.weight", "self_attn.indexer.wq_b.weight",
    "self_attn.indexer.k_norm.weight", "self_attn.indexer.k_norm.bias",
    "self_attn.indexer.wk.weight"};

// Back-propagation order inside a layer, after the experts.
constexpr std::array<std::string_view, 8> kAttentionBackwards = {
    "self_attn.o_proj.weight",         "self_attn.kv_b_proj.weight",
    "self_attn.kv_a_layernorm.weight", "self_attn.kv_a_proj_with_mqa.weight",
    "self_attn.q_b_proj.weight",       "self_attn.q_a_layernorm.weight",
    "self_attn.q_a_proj.weight",       "input_layernorm.weight"};

void add_mlp_gradients(const std::string& mlp, std::vector<std::string>& names) {
  for (const char* part : {"down_proj", "gate_proj", "up_proj"}) {
    names.push_back(mlp + part + ".weight");
  }
}

void add_indexer_gradients(int64_t layer, std::vector<std::string>& names) {
  const std::string prefix = "grad.model.layers." + std::to_string(layer) + ".";
  for (const std::string_view part : kIndexerBackwards) {
    names.push_back(prefix + std::string(part));
  }
}

void add_layer_gradients(const ModelConfig& config, int64_t layer,
                         std::vector<std::string>& names) {
  const std::string prefix = "grad.model.layers." + std::to_string(layer) + ".";
  if (config.is_dense_mlp(layer)) {
    add_mlp_gradients(prefix + "mlp.", names);
  } else {
    for (int64_t expert = 0; expert < config.n_routed_experts; ++expert) {
      add_mlp_gradients(prefix + "mlp.experts." + std::to_string(expert) + ".", names);
    }
    add_mlp_gradients(prefix + "mlp.shared_experts.", names);
    names.push_back(prefix + "mlp.gate.weight");
  }
  names.push_back(prefix + "post_attention_layernorm.weight");
  for (const std::string_view part : kAttentionBackwards) {
    names.push_back(prefix + std::string(part));
  }
}

}  // namespace

const std::vector<TapInfo>& tap_vocabulary() {
  static const std::vector<TapInfo> vocabulary = make_vocabulary();
  return vocabulary;
}

std::optional<TapName> parse_tap(const std::string& full) {
  if (std::optional<TapName> weight = parse_weight_tap(full)) return weight;
  if (!full.starts_with(kLayers)) {
    const TapInfo* info = find_info(full, false);
    return info == nullptr ? std::nullopt : std::optional(TapName{full, std::nullopt, *info});
  }
  const auto split = split_layer(std::string_view(full).substr(kLayers.size()));
  const TapInfo* info = split ? find_info(split->second, true) : nullptr;
  return info == nullptr ? std::nullopt : std::optional(TapName{full, split->first, *info});
}

std::string slope_name(const std::string& tap) { return std::string(kSlope) + tap; }

std::optional<TapName> parse_slope(const std::string& name) {
  if (!name.starts_with(kSlope)) return std::nullopt;
  std::optional<TapName> tap = parse_tap(name.substr(kSlope.size()));
  const bool has_one = tap && !tap->info.is_decision() && tap->info.kind != TapKind::gradient &&
                       tap->info.kind != TapKind::series;
  return has_one ? tap : std::nullopt;
}

std::string layer_tap(int64_t layer, std::string_view name) {
  return std::string(kLayers) + std::to_string(layer) + "." + std::string(name);
}

std::string tap_stem(const std::string& full) {
  if (const auto slope = parse_slope(full)) return slope_name(tap_stem(slope->full));
  const std::optional<TapName> tap = parse_tap(full);
  if (!tap || !tap->layer) return full;
  const std::string number = std::to_string(*tap->layer) + ".";
  if (tap->info.kind != TapKind::gradient) return full.substr(kLayers.size() + number.size());
  const std::string kind = std::string(tap->info.name) + ".";
  return kind + full.substr(kind.size() + std::string_view("model.layers.").size() + number.size());
}

std::vector<std::string> tap_inputs(const TapName& tap, const ModelConfig& config) {
  if (tap.layer && tap.info.name == "mlp.out" && config.is_dense_mlp(*tap.layer)) {
    return {layer_tap(*tap.layer, "ffn_norm")};
  }
  std::vector<std::string> names;
  for (const std::string_view input : tap.info.inputs) {
    const int64_t layer = tap.layer.value_or(config.num_hidden_layers);
    if (input != "hidden") {
      names.push_back(tap.layer ? layer_tap(layer, input) : std::string(input));
    } else {
      names.push_back(layer == 0 ? "embed" : layer_tap(layer - 1, "hidden"));
    }
  }
  return names;
}

std::optional<Shape> tap_shape(const TapName& tap, const ModelConfig& config, int64_t B,
                               int64_t S) {
  if (tap.info.kind == TapKind::gradient) {
    return weight_shape(config, tap.full.substr(tap.info.name.size() + 1));
  }
  if (tap.layer) {
    if (*tap.layer >= config.num_hidden_layers) return std::nullopt;
    if (config.is_dense_mlp(*tap.layer) && is_moe_only(tap.info.name)) return std::nullopt;
  }
  return shape_by_name(tap.info.name, config, B, S);
}

std::vector<std::string> forward_taps(const ModelConfig& config) {
  std::vector<std::string> names = {"embed"};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const TapInfo& info : tap_vocabulary()) {
      const bool skipped = config.is_dense_mlp(layer) && is_moe_only(info.name);
      if (info.per_layer && !skipped) names.push_back(layer_tap(layer, info.name));
      if (info.name == "hidden") break;  // the KL taps come after it
    }
  }
  for (const char* name : {"final_norm", "logits", "loss.lm"}) names.emplace_back(name);
  return names;
}

std::vector<std::string> kl_taps(const ModelConfig& config, const Objective& objective) {
  std::vector<std::string> names;
  if (objective.kl == KlStage::none) return names;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const char* tap : {"kl.target", "kl.student", "kl.rows", "kl.dscores", "loss.kl"}) {
      names.push_back(layer_tap(layer, tap));
    }
  }
  names.emplace_back("loss.kl");
  return names;
}

std::vector<std::string> gradient_taps(const ModelConfig& config) {
  return gradient_taps(config, Objective{});
}

std::vector<std::string> layer_gradient_taps(const ModelConfig& config, int64_t layer) {
  std::vector<std::string> names;
  add_layer_gradients(config, layer, names);
  return names;
}

std::vector<std::string> gradient_taps(const ModelConfig& config, const Objective& objective) {
  std::vector<std::string> names;
  if (objective.lm) names = {"grad.lm_head.weight", "grad.model.norm.weight"};
  for (int64_t layer = config.num_hidden_layers - 1; layer >= 0; --layer) {
    if (objective.kl != KlStage::none) add_indexer_gradients(layer, names);
    if (objective.lm) add_layer_gradients(config, layer, names);
  }
  if (objective.lm) names.emplace_back("grad.model.embed_tokens.weight");
  return names;
}

}  // namespace dsv32
