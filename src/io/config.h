#pragma once

#include <filesystem>
#include <string>

#include "src/io/json.h"
#include "src/model/config.h"

namespace dsv32::io {

/// Reads a config.json object of either style. `where` names it in errors.
ModelConfig config_from_json(const Json& object, const std::string& where);
/// `quantization_config` of such an object; nullopt for none, or for one that is no block-wise FP8
/// (a warning says so).
std::optional<Fp8Config> fp8_from_json(const Json& object, const std::string& where,
                                       std::vector<std::string>& warnings);
/// Writes a config in the released style, with every field that Hugging Face saves for this model.
Json config_to_json(const ModelConfig& config, const std::string& torch_dtype);
/// The same as transformers 5 writes it: rope_parameters, mlp_layer_types, dtype.
Json config_to_json_5(const ModelConfig& config, const std::string& dtype);
/// Is `field` one that a config.json of this model may have?
bool is_config_field(const std::string& field);
/// Is it one that changes no number (`head_dim`, token ids)?
bool is_ignored_config_field(const std::string& field);
/// The path of a shipped config or the given path; a folder means its config.json.
/// Throws Error (usage) with the nearest name for a word that is neither.
std::filesystem::path config_path(const std::string& name_or_path);
/// Is this the name of a shipped config?
bool is_config_name(const std::string& name);

}  // namespace dsv32::io
