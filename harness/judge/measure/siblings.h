#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/comparison.h"

namespace dsv32::harness {

/// What the gradients of a layer's experts stray by. Asked for each, measured once per layer and
/// projection.
class SiblingNoise {
 public:
  /// `gradients`: all gradient taps of the run; `comparison`: that of one of them. A gradient that
  /// is no expert's has no siblings: zeros.
  Siblings of(const TapName& gradient, const std::vector<std::string>& gradients,
              const std::function<Comparison(const TapName&)>& comparison);

 private:
  std::map<std::string, Siblings> known_;  // by family
};

}  // namespace dsv32::harness
