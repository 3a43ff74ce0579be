#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "src/io/io.h"

namespace dsv32::io {

/// The whole header of a safetensors file: metadata and tensors.
struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::map<std::string, TensorEntry> tensors;
};

/// Parses and checks the JSON of a header against a data section of `data_bytes` bytes. `where`
/// names the file. Throws Error (artefact) at the first broken rule. The format:
/// huggingface/safetensors, README.
SafetensorsHeader parse_safetensors_header(const std::string& text, uint64_t data_bytes,
                                           const std::string& where);

/// The file's word for a dtype: "BF16".
std::string_view safetensors_dtype(DType dtype);

}  // namespace dsv32::io
