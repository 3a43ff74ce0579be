#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "golden/reader/golden.h"
#include "golden/reader/training_golden.h"

/// What `golden verify|show|diff` say of training goldens.
namespace dsv32::harness {

/// One line of `golden diff`.
struct Change {
  std::string tap, text;
};

golden::TrainingGolden load_entry(const golden::ManifestEntry& entry,
                                  const std::filesystem::path& directory);
/// "50 steps, 2 series, 76 parameters, 150 decisions, band of 64 runs".
std::string summary(const golden::TrainingGolden& golden);
/// Prints series, parameters and tensors.
void show_content(const golden::TrainingGolden& golden);
/// Everything but the attributes.
void compare_content(const golden::TrainingGolden& a, const golden::TrainingGolden& b,
                     std::vector<Change>& changes);

}  // namespace dsv32::harness
