#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "src/model/case.h"

namespace dsv32::io {

/// Does what case_from_metadata does, with a name for errors.
Case case_from_text(const std::string& text, const std::string& where);

inline constexpr const char* kCaseFile = "dsv32_case.json";

/// The case of DIR/kCaseFile; nullopt when there is no such file.
std::optional<Case> case_of_checkpoint(const std::filesystem::path& dir);

}  // namespace dsv32::io
