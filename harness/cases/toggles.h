#pragma once

#include <functional>
#include <string>
#include <vector>

#include "src/model/config.h"
#include "src/model/dialect.h"

namespace dsv32::harness {

/// One thing that an implementation may do otherwise: a known bug, or a part of a dialect.
struct Toggle {
  std::string name;   // "k-norm-eps"
  std::string words;  // "k_norm with eps 1e-5 instead of 1e-6"
  std::function<void(Dialect&)> plant;
  std::string first_tap = {};  // as KnownBug::first_tap; empty: anywhere
  /// Taps that it alone computes otherwise, as tap_stem; empty: those of the variants it changes.
  std::vector<std::string> taps = {};

  Dialect planted(Dialect dialect) const {
    plant(dialect);
    return dialect;
  }
  /// Only the gradients show it.
  bool gradients_only() const { return first_tap.starts_with("grad."); }
};

/// All that is tried on a model of this config under this objective, in this dtype, in the order in
/// which names are preferred: the catalogue of known bugs, then the parts of the dialects and the
/// values of eps that no known bug has.
std::vector<Toggle> toggles_for(const ModelConfig& config, const Objective& objective,
                                DType dtype = DType::float32);

/// Taps (as tap_stem) whose ops read a part in which the two dialects differ.
std::vector<std::string> changed_ops(const Dialect& a, const Dialect& b);
/// The toggle may change what the op of this tap computes (`stem` as tap_stem). Taps after it that
/// read its values are not meant.
bool touches(const Toggle& toggle, const std::string& stem);

}  // namespace dsv32::harness
