#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"

/// What a run found about the witnesses of a case, kept for later runs.
namespace dsv32::harness {

/// What was found about one witness.
struct Witness {
  Subject subject;
  size_t checks = 0;  // that ran
  size_t failed = 0;
};

/// One JSON array, on one line.
std::string witnesses_json(const std::vector<Witness>& witnesses);
/// nullopt: the text is none that witnesses_json wrote.
std::optional<std::vector<Witness>> read_witnesses(const std::string& json);

}  // namespace dsv32::harness
