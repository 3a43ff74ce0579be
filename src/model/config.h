#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dsv32 {

/// YaRN settings (`rope_scaling` or `rope_parameters` of config.json). docs/spec.md 1.3.
struct YarnConfig {
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;  // 0: absent
};

/// 0.1 mscale ln(factor) + 1; 1 without interpolation. docs/spec.md 1.3.
double yarn_mscale(double factor, double mscale);

/// How weights are quantised to FP8 (`quantization_config` of config.json), as released unless said
/// otherwise. docs/formats.md 7.
struct Fp8Config {
  int64_t block_rows = 128, block_columns = 128;  // weight_block_size
  std::string scale_fmt = "ue8m0";                // empty: scales are float32

  /// Scales are powers of two, whatever scale_fmt says.
  bool ue8m0() const { return !scale_fmt.empty(); }
  bool operator==(const Fp8Config&) const = default;
};

/// What follows from a config with YaRN. docs/spec.md 1.3.
struct YarnNumbers {
  /// Pairs up to `low` keep their frequency, those from `high` on are divided by the factor.
  double low = 0, high = 0;
  /// Of the pairs in between: what a step of one pair is divided by.
  double width = 1;
  double mscale = 1;  // yarn_mscale(factor, mscale_all_dim)
};

/// A DeepSeek-V3.2 config; field names as in Hugging Face's config.json.
struct ModelConfig {
  std::string name;  // "tiny", "small", ... or the path it came from; not part of the numbers

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t moe_intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t n_shared_experts = 0;
  int64_t n_routed_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  double routed_scaling_factor = 1;
  bool norm_topk_prob = true;
  int64_t q_lora_rank = 0;
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t first_k_dense_replace = 0;
  int64_t max_position_embeddings = 0;
  int64_t index_n_heads = 0;
  int64_t index_head_dim = 0;
  int64_t index_topk = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<YarnConfig> yarn;
  std::optional<Fp8Config> fp8;  // of its FP8 checkpoints
  bool use_sparse_attention = true;

  std::vector<std::string> warnings;  // unknown fields and the like; the report repeats them

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  bool is_dense_mlp(int64_t layer) const { return layer < first_k_dense_replace; }
  /// nullopt without YaRN.
  std::optional<YarnNumbers> yarn_numbers() const;

  /// Throws Error (artefact) at the first impossible value or contradiction, naming the field.
  void validate() const;
};

}  // namespace dsv32
