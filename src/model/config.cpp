#include "src/model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "src/model/errors.h"

namespace dsv32 {

namespace {

// Beyond every real model; keeps products of two fields inside 63 bits.
constexpr int64_t kLargest = int64_t{1} << 30;

[[noreturn]] void refuse(const ModelConfig& config, const std::string& field,
                         const std::string& expected, const std::string& got) {
  throw Error(ExitCode::artefact, {.where = config.name.empty() ? "config" : config.name,
                                   .what = field,
                                   .expected = expected,
                                   .got = got});
}

std::string number(double value) {
  std::string text = std::to_string(value);
  if (std::isfinite(value) && (std::fabs(value) < 1e-3 || std::fabs(value) > 1e6)) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%g", value);
    text = buffer;
  }
  return text;
}

/// c(r): the pair that turns r times within the original context. docs/spec.md 1.3.
double turning_pair(const ModelConfig& config, double turns) {
  const auto length = static_cast<double>(config.yarn->original_max_position_embeddings);
  return static_cast<double>(config.qk_rope_head_dim) *
         std::log(length / (2 * std::numbers::pi * turns)) / (2 * std::log(config.rope_theta));
}

// Every check in one place to read; the first failing one throws.
class Checker {
 public:
  explicit Checker(const ModelConfig& config) : config_(config) {}

  void between(const char* field, int64_t value, int64_t low, int64_t high) const {
    if (value >= low && value <= high) return;
    refuse(config_, field, std::to_string(low) + ".." + std::to_string(high),
           std::to_string(value));
  }
  void positive(const char* field, int64_t value) const { between(field, value, 1, kLargest); }
  /// Beyond these float32 overflows somewhere in the model, or loses the number.
  void positive(const char* field, double value) const {
    constexpr double kSmallest = 1e-30, kGreatest = 1e9;
    if (!(value > 0)) refuse(config_, field, "> 0", number(value));
    if (!(value >= kSmallest && value <= kGreatest))
      refuse(config_, field, "1e-30 to 1e9", number(value));
  }
  void that(bool holds, const char* field, const std::string& expected, int64_t got) const {
    if (!holds) refuse(config_, field, expected, std::to_string(got));
  }

 private:
  const ModelConfig& config_;
};

void check_sizes(const ModelConfig& c, const Checker& check) {
  check.positive("vocab_size", c.vocab_size);
  check.positive("hidden_size", c.hidden_size);
  check.positive("intermediate_size", c.intermediate_size);
  check.positive("moe_intermediate_size", c.moe_intermediate_size);
  check.positive("num_hidden_layers", c.num_hidden_layers);
  check.positive("max_position_embeddings", c.max_position_embeddings);
  check.between("first_k_dense_replace", c.first_k_dense_replace, 0, c.num_hidden_layers);
  check.positive("rms_norm_eps", c.rms_norm_eps);
}

void check_attention(const ModelConfig& c, const Checker& check) {
  check.positive("num_attention_heads", c.num_attention_heads);
  check.that(c.num_key_value_heads == c.num_attention_heads, "num_key_value_heads",
             "num_attention_heads, " + std::to_string(c.num_attention_heads),
             c.num_key_value_heads);
  check.positive("q_lora_rank", c.q_lora_rank);
  check.positive("kv_lora_rank", c.kv_lora_rank);
  check.positive("qk_nope_head_dim", c.qk_nope_head_dim);
  check.positive("qk_rope_head_dim", c.qk_rope_head_dim);
  check.that(c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", "an even number", c.qk_rope_head_dim);
  check.positive("v_head_dim", c.v_head_dim);
}

void check_indexer(const ModelConfig& c, const Checker& check) {
  check.positive("index_n_heads", c.index_n_heads);
  check.positive("index_head_dim", c.index_head_dim);
  check.that(c.index_head_dim >= c.qk_rope_head_dim, "index_head_dim",
             "at least qk_rope_head_dim, " + std::to_string(c.qk_rope_head_dim), c.index_head_dim);
  check.positive("index_topk", c.index_topk);
}

void check_experts(const ModelConfig& c, const Checker& check) {
  check.positive("n_routed_experts", c.n_routed_experts);
  check.positive("n_shared_experts", c.n_shared_experts);
  check.between("num_experts_per_tok", c.num_experts_per_tok, 1, c.n_routed_experts);
  check.positive("n_group", c.n_group);
  check.that(c.n_routed_experts % c.n_group == 0, "n_group",
             "a divisor of n_routed_experts, " + std::to_string(c.n_routed_experts), c.n_group);
  const int64_t per_group = c.n_routed_experts / c.n_group;
  check.that(per_group >= 2, "n_group", "groups of two experts or more (docs/spec.md 1.8)",
             c.n_group);
  check.between("topk_group", c.topk_group, 1, c.n_group);
  check.that(
      c.num_experts_per_tok <= per_group * c.topk_group, "num_experts_per_tok",
      "at most the experts of topk_group groups, " + std::to_string(per_group * c.topk_group),
      c.num_experts_per_tok);
  check.positive("routed_scaling_factor", c.routed_scaling_factor);
}

void check_rope(const ModelConfig& c, const Checker& check) {
  constexpr double kGreatestTheta = 1e15, kGreatestScale = 1e3;
  if (!(c.rope_theta > 1 && c.rope_theta <= kGreatestTheta)) {
    refuse(c, "rope_theta", c.rope_theta > 1 ? "at most 1e15" : "> 1", number(c.rope_theta));
  }
  if (!c.yarn) return;
  const YarnConfig& yarn = *c.yarn;
  check.positive("rope_scaling.factor", yarn.factor);
  check.positive("rope_scaling.original_max_position_embeddings",
                 yarn.original_max_position_embeddings);
  check.positive("rope_scaling.beta_slow", yarn.beta_slow);
  check.positive("rope_scaling.beta_fast", yarn.beta_fast);
  if (yarn.beta_fast < yarn.beta_slow) {
    refuse(c, "rope_scaling.beta_fast", "at least beta_slow, " + number(yarn.beta_slow),
           number(yarn.beta_fast));
  }
  for (const auto& [field, value] :
       {std::pair{"rope_scaling.mscale", yarn.mscale},
        std::pair{"rope_scaling.mscale_all_dim", yarn.mscale_all_dim}}) {
    if (!(value >= 0)) refuse(c, field, ">= 0", number(value));
    if (value > kGreatestScale) refuse(c, field, "at most 1000", number(value));
  }
}

}  // namespace

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 || mscale == 0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

std::optional<YarnNumbers> ModelConfig::yarn_numbers() const {
  if (!yarn) return std::nullopt;
  constexpr double kShortest = 0.001;  // where both ends are one pair
  const auto last = static_cast<double>(qk_rope_head_dim - 1);
  const double low = std::max(std::floor(turning_pair(*this, yarn->beta_fast)), 0.0);
  const double high = std::min(std::ceil(turning_pair(*this, yarn->beta_slow)), last);
  return YarnNumbers{.low = low,
                     .high = high,
                     .width = high == low ? kShortest : high - low,
                     .mscale = yarn_mscale(yarn->factor, yarn->mscale_all_dim)};
}

void ModelConfig::validate() const {
  const Checker check(*this);
  check_sizes(*this, check);
  check_attention(*this, check);
  check_indexer(*this, check);
  check_experts(*this, check);
  check_rope(*this, check);
  if (!fp8) return;
  check.positive("quantization_config.weight_block_size", fp8->block_rows);
  check.positive("quantization_config.weight_block_size", fp8->block_columns);
}

}  // namespace dsv32
