#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/verdict.h"

namespace dsv32::harness {

/// Verdicts of many steps, kept as one per tap: its first bad step, else its worst one.
class StepBook {
 public:
  /// In the order in which a step makes them: the first bad one is the origin.
  void keep(int64_t step, Verdict verdict);
  /// "step by step" (which step and tap fail first), then one verdict per tap.
  std::vector<Verdict> verdicts(const std::string& subject) const;

 private:
  std::string first_bad_;
  int64_t failures_ = 0, kept_ = 0;
  std::vector<std::string> order_;
  std::map<std::string, Verdict> worst_;
};

}  // namespace dsv32::harness
