#pragma once

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "harness/training/step/evidence.h"

namespace dsv32::harness {

/// A fault in the gradients of adapter factors.
struct FactorFault {
  std::string name, words;
};

/// Ranks that split a layer do not add up what each has of a factor that all of them hold whole.
/// nullopt: with all factors right but these, that does not explain the first `steps` steps.
std::optional<FactorFault> not_reduced(const StepEvidence& evidence,
                                       const std::set<std::string>& failing, size_t steps);
/// These factors have the gradients of other places of their layers. The first step alone tells:
/// later ones read weights that such a model makes otherwise.
std::optional<FactorFault> misplaced(const StepEvidence& evidence,
                                     const std::set<std::string>& failing);

/// Their names and what they are.
std::vector<std::pair<std::string, std::string>> factor_faults();

}  // namespace dsv32::harness
