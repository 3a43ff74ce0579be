#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "golden/reader/golden.h"

/// Goldens of the training suites: one HDF5 file per suite and case, `<suite>.<case>.h5`, made by
/// golden/make with real transformers, torch, peft and DeepSpeed. Layout:
/// docs/formats.md 10.
namespace dsv32::golden {

/// Spread of a free-running curve over clean runs (one-ulp perturbations of the start weights).
struct Band {
  int64_t runs = 0;
  std::vector<double> mean;        // [steps]
  std::vector<double> deviation;   // [steps], sample standard deviation
  std::vector<double> components;  // [5, steps], orthonormal leading directions
  std::vector<double> variances;   // [5], along the components
};

struct TrainingGolden {
  std::string name;   // "loss_descent.tiny-wide"
  std::string suite;  // "loss_descent"
  std::string case_name;
  std::string dialect;
  /// Root attributes: provenance, and `recipe` as RFC 8785 JSON.
  std::map<std::string, std::string> attributes;
  std::map<std::string, std::vector<double>> series;  // "loss", "kl", "grad_norm", ...: [steps]
  std::vector<Trace> decisions;  // topk and router.experts of every step, whole batch
  std::vector<std::string> parameter_names;
  std::vector<float> parameter_norms;        // [steps, names] after each step
  std::vector<float> parameter_projections;  // [steps, names, 16]
  std::optional<Band> band;                  // of series "loss"
  Trace tensors;                             // whole tensors that the suite asks for
};

/// Checks the hash, then opens and reads; errors as golden::load.
TrainingGolden load_training(const std::string& suite, const std::string& case_name,
                             const std::filesystem::path& directory = default_directory());
bool training_exists(const std::string& suite, const std::string& case_name,
                     const std::filesystem::path& directory = default_directory());

}  // namespace dsv32::golden
