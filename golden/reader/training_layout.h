#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "golden/reader/golden.h"
#include "golden/reader/training_golden.h"
#include "src/model/case.h"

/// What a training golden must hold: docs/formats.md 10 in code. Pure functions, no HDF5.
namespace dsv32::golden {

inline constexpr const char* kTrainingFormat = "dsv32-verify.training-golden";
inline constexpr int kTrainingVersion = 1;
inline constexpr int64_t kBandComponents = 5;

/// A whole tensor under /tensors: its name is its link name.
struct ListedTensor {
  std::string name;
  DType dtype = DType::float32;
  Shape shape;
};

/// What the attributes say that the groups hold. Every number in it is bounded.
struct TrainingListing {
  int64_t steps = 0;
  std::vector<std::string> series, decisions, parameters;
  std::vector<ListedTensor> tensors;
};

/// Checks the root attributes against manifest and case; throws Error (artefact) at the first that
/// does not fit.
TrainingListing check_training(const TrainingGolden& golden, const ManifestEntry& entry,
                               const Case& c, const std::string& where);

}  // namespace dsv32::golden
