#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

/// Damages golden files on purpose: what suites/golden/golden.cpp feeds to the reader. Not part of
/// the tool.
namespace dsv32::golden {

/// One kind of damage to a golden of a tiny case (kind full), with a part of the complaint that it
/// must cause.
struct Damage {
  std::string name;
  std::string complaint;
  std::function<void(const std::filesystem::path&)> apply;
};
const std::vector<Damage>& damages();
/// The damages to loss_descent.tiny-wide.
const std::vector<Damage>& training_damages();

}  // namespace dsv32::golden
