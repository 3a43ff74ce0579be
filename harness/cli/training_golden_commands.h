#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "golden/reader/golden.h"
#include "golden/reader/training_golden.h"

/// What `golden verify|show|diff` say of training goldens.
namespace dsv32::golden {

/// One line of `golden diff`.
struct Change {
  std::string tap, text;
};

TrainingGolden load_training(const ManifestEntry& entry, const std::filesystem::path& directory);
/// "50 steps, 2 series, 76 parameters, 150 decisions, band of 64 runs".
std::string summary(const TrainingGolden& golden);
/// Prints series, parameters and tensors.
void show_content(const TrainingGolden& golden);
/// Everything but the attributes.
void compare_content(const TrainingGolden& a, const TrainingGolden& b,
                     std::vector<Change>& changes);

}  // namespace dsv32::golden
