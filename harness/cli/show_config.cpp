#include <charconv>
#include <cmath>
#include <iostream>
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

std::string correction_range(const std::optional<YarnNumbers>& yarn) {
  return yarn ? "[" + json_number(yarn->low) + ", " + json_number(yarn->high) + "]" : "null";
}

Fields derived(const ModelConfig& config) {
  const std::vector<WeightSpec> specs = weight_specs(config);
  int64_t values = 0;
  for (const WeightSpec& spec : specs) values += numel(spec.shape);
  const std::optional<YarnNumbers> yarn = config.yarn_numbers();
  const double mscale = yarn ? yarn->mscale : 1;
  const double scale = mscale * mscale / std::sqrt(static_cast<double>(config.qk_head_dim()));
  return {{"qk_head_dim", std::to_string(config.qk_head_dim())},
          {"rope_pairs", std::to_string(config.qk_rope_head_dim / 2)},
          {"mscale", json_number(mscale)},
          {"softmax_scale", json_number(scale)},
          {"yarn_correction_range", correction_range(yarn)},
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
  if (options.case_name) return io::case_of_words(*options.case_name).config;
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
