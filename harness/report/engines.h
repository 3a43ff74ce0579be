#pragma once

#include <string>
#include <vector>

#include "harness/report/groups.h"

namespace dsv32::harness {

/// What all files of one engine say together about one part of the model.
struct ComponentRow {
  std::string component;  // "indexer"
  std::string state;      // "PASS", "FAIL", "UNDECIDED" or "NOT TESTED"
  std::string evidence;   // "412 checks in 5 files", or the defects in words and where they show
};

/// Several candidate files of one engine: the same transformers, engine or source digest.
struct Engine {
  std::string name;     // "transformers 5.23.0", "mlx-lm"
  size_t files = 0;     // 2 or more
  std::string profile;  // "spec-1 + {k-norm-eps}, not explained: attn.ctx"; "" without a failure
  std::vector<ComponentRow> rows;  // every part of the model, in paper order
};

/// One for each engine with two candidate files or more, by name.
std::vector<Engine> engines_of(const Report& report, const std::vector<Group>& groups);

}  // namespace dsv32::harness
