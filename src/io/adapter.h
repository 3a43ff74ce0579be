#pragma once

#include <optional>
#include <string>
#include <vector>

#include "src/io/io.h"
#include "src/io/json.h"

/// What src/io knows of peft's adapter_config.json (huggingface/peft, LoraConfig of 0.21).
namespace dsv32::io {

/// Which modules a config takes, each with its rank and alpha.
struct AdapterConfig {
  std::vector<LoraModule> modules;  // in the order of lora_modules
  std::vector<std::string> warnings;
};
/// `where` names the file. Throws Error (artefact).
AdapterConfig parse_adapter_config(const std::string& text, const ModelConfig& config,
                                   const std::string& where);

/// The config that peft would take for these modules.
std::string adapter_config_text(const ModelConfig& config, const std::vector<LoraModule>& modules);

inline constexpr const char* kAdapterConfig = "adapter_config.json";
inline constexpr const char* kAdapterTensors = "adapter_model.safetensors";

}  // namespace dsv32::io
