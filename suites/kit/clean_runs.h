#pragma once

#include <cstdint>

#include "harness/training/suite.h"

namespace dsv32::suites {

/// 100 clean runs of one training suite, each from start weights that are moved by one ulp with a
/// seed of its own (0: not moved, with the golden). Every alarm fails the test; the largest value
/// of each family of checks is printed.
void expect_clean_runs(const harness::TrainingJob& job,
                       harness::TrainingResult (*judge)(const harness::TrainingJob&),
                       uint64_t first_seed);

}  // namespace dsv32::suites
