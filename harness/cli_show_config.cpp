#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numbers>

#include "harness/cli_commands.h"
#include "src/io/io.h"
#include "src/model/log.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

using Json = nlohmann::ordered_json;

/// SPEC 1.3: 0.1 * mscale_all_dim * ln(factor) + 1.
double mscale(const ModelConfig& config) {
  if (!config.yarn || config.yarn->factor <= 1 || config.yarn->mscale_all_dim == 0) return 1;
  return 0.1 * config.yarn->mscale_all_dim * std::log(config.yarn->factor) + 1;
}

double softmax_scale(const ModelConfig& config) {
  const double m = mscale(config);
  return m * m / std::sqrt(static_cast<double>(config.qk_head_dim()));
}

/// SPEC 1.3, c(r): the pair that turns r times within the original context.
double turning_pair(const ModelConfig& config, double turns) {
  const auto d = static_cast<double>(config.qk_rope_head_dim);
  const auto context = static_cast<double>(config.yarn->original_max_position_embeddings);
  return d * std::log(context / (2 * std::numbers::pi * turns)) / (2 * std::log(config.rope_theta));
}

Json correction_range(const ModelConfig& config) {
  if (!config.yarn) return nullptr;
  const auto last = static_cast<double>(config.qk_rope_head_dim - 1);
  const double low = std::max(std::floor(turning_pair(config, config.yarn->beta_fast)), 0.0);
  const double high = std::min(std::ceil(turning_pair(config, config.yarn->beta_slow)), last);
  return Json::array({low, high});
}

struct Count {
  int64_t tensors = 0;
  int64_t values = 0;
};

Count count_parameters(const ModelConfig& config) {
  Count count;
  for (const WeightSpec& spec : weight_specs(config)) {
    ++count.tensors;
    count.values += numel(spec.shape);
  }
  return count;
}

Json derived(const ModelConfig& config) {
  const Count count = count_parameters(config);
  Json out;
  out["qk_head_dim"] = config.qk_head_dim();
  out["rope_pairs"] = config.qk_rope_head_dim / 2;
  out["mscale"] = mscale(config);
  out["softmax_scale"] = softmax_scale(config);
  out["yarn_correction_range"] = correction_range(config);
  out["moe_layers"] = config.num_hidden_layers - config.first_k_dense_replace;
  out["tensors"] = count.tensors;
  out["parameters"] = count.values;
  out["bytes_bfloat16"] = count.values * item_size(DType::bfloat16);
  return out;
}

ModelConfig chosen_config(const Options& options) {
  if (options.case_name) return io::find_case(*options.case_name).config;
  return io::read_config(options.config.value_or("tiny"));
}

}  // namespace

ExitCode show_config_command(const Options& options) {
  const ModelConfig config = chosen_config(options);
  for (const std::string& warning : config.warnings) log_warning(warning);
  Json out;
  out["name"] = options.case_name.value_or(config.name);
  out["config"] = Json::parse(io::config_json(config));
  out["use_sparse_attention"] = config.use_sparse_attention;
  out["derived"] = derived(config);
  std::cout << out.dump(2) << "\n";
  return ExitCode::ok;
}

}  // namespace dsv32::harness
