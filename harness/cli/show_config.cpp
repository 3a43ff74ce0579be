#include <algorithm>
#include <charconv>
#include <cmath>
#include <iostream>
#include <numbers>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "harness/cli/commands.h"
#include "src/io/io.h"
#include "src/log/log.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

using Fields = std::vector<std::pair<std::string, std::string>>;  // names and JSON values

/// The shortest text that reads back as the same number.
std::string json_number(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

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

std::string correction_range(const ModelConfig& config) {
  if (!config.yarn) return "null";
  const auto last = static_cast<double>(config.qk_rope_head_dim - 1);
  const double low = std::max(std::floor(turning_pair(config, config.yarn->beta_fast)), 0.0);
  const double high = std::min(std::ceil(turning_pair(config, config.yarn->beta_slow)), last);
  return "[" + json_number(low) + ", " + json_number(high) + "]";
}

Fields derived(const ModelConfig& config) {
  const std::vector<WeightSpec> specs = weight_specs(config);
  int64_t values = 0;
  for (const WeightSpec& spec : specs) values += numel(spec.shape);
  return {{"qk_head_dim", std::to_string(config.qk_head_dim())},
          {"rope_pairs", std::to_string(config.qk_rope_head_dim / 2)},
          {"mscale", json_number(mscale(config))},
          {"softmax_scale", json_number(softmax_scale(config))},
          {"yarn_correction_range", correction_range(config)},
          {"tensors", std::to_string(specs.size())},
          {"parameters", std::to_string(values)},
          {"bytes_bfloat16", std::to_string(values * item_size(DType::bfloat16))}};
}

/// Pretty JSON text of some value, moved in by one level.
std::string indented(const std::string& text) {
  std::string out;
  for (const char c : text.substr(0, text.find_last_not_of('\n') + 1)) {
    out += c;
    if (c == '\n') out += "  ";
  }
  return out;
}

std::string object(const Fields& fields) {
  std::string out = "{";
  for (const auto& [name, value] : fields) {
    out += (out.size() > 1 ? ",\n  \"" : "\n  \"") + name + "\": " + indented(value);
  }
  return out + "\n}\n";
}

}  // namespace

ModelConfig chosen_config(const Options& options) {
  if (options.case_name) return io::find_case(*options.case_name).config;
  return io::read_config(options.config.value_or("tiny"));
}

ExitCode show_config_command(const Options& options) {
  const ModelConfig config = chosen_config(options);
  for (const std::string& warning : config.warnings) log_warning(warning);
  std::cout << object({{"use_sparse_attention", config.use_sparse_attention ? "true" : "false"},
                       {"config", io::config_json(config)},
                       {"derived", object(derived(config))}});
  return ExitCode::ok;
}

}  // namespace dsv32::harness
