#pragma once

#include <filesystem>
#include <string>

#include "src/model/errors.h"

/// The commands `golden verify|show|diff`: text on stdout, and the exit code.
namespace dsv32::harness {

/// Hash, layout and provenance of every golden of the manifest. 4 when one is bad, unlisted or
/// absent, 5 when the manifest lists none.
ExitCode golden_verify_command(const std::filesystem::path& directory);
/// `name`: a case, or SUITE.CASE of a training golden.
ExitCode golden_show_command(const std::string& name, const std::filesystem::path& directory);
/// 1 when the folders differ.
ExitCode golden_diff_command(const std::filesystem::path& a, const std::filesystem::path& b);

}  // namespace dsv32::harness
