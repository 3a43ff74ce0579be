#pragma once

#include <cstdint>
#include <string>

#include "src/training/trainer.h"

namespace dsv32::harness {

/// A recipe as the attribute `recipe` of its golden says it: RFC 8785 JSON (docs/formats.md 10).
std::string recipe_text(const training::Recipe& recipe, int64_t world = 1);

}  // namespace dsv32::harness
