#pragma once

#include <filesystem>
#include <string>

#include "src/io/json.h"
#include "src/model/config.h"

namespace dsv32::io {

/// Reads a config.json object of either style. `where` names it in errors.
ModelConfig config_from_json(const Json& object, const std::string& where);
/// Writes a config in the released style, with every field that Hugging Face saves for this model.
Json config_to_json(const ModelConfig& config, const std::string& torch_dtype);
/// Is `field` one that a config.json of this model may have?
bool is_config_field(const std::string& field);
/// The path of a shipped config or the given path; a folder means its config.json.
/// Throws Error (usage) with the nearest name for a word that is neither.
std::filesystem::path config_path(const std::string& name_or_path);
/// Is this the name of a shipped config?
bool is_config_name(const std::string& name);

}  // namespace dsv32::io
