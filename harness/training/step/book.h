#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"

namespace dsv32::harness {

/// "step.3.grad.WEIGHT": a check of every step ("steps.grad.WEIGHT") in one of them.
std::string name_in_step(int64_t step, const std::string& check);

/// Verdicts of many steps, kept as one per tap: its first bad step, else its worst one.
class StepBook {
 public:
  /// In the order in which a step makes them: the first bad one is the origin.
  void keep(int64_t step, Verdict verdict);
  /// "steps" (which step and tap fail first), then one verdict per tap.
  [[nodiscard]] std::vector<Verdict> verdicts(const Subject& subject) const;

 private:
  std::string first_bad_;
  int64_t failures_ = 0, kept_ = 0;
  std::vector<std::string> order_;
  std::map<std::string, Verdict> worst_;
};

}  // namespace dsv32::harness
