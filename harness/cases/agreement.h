#pragma once

#include <string>

#include "harness/cases/case_run.h"

namespace dsv32::harness {

/// What a hypothesis gives for one tap: a float64 run, and what rounding does to it.
struct Expected {
  const HostTensor* oracle = nullptr;
  const HostTensor* reference = nullptr;  // of the subject's dtype; nullptr: not made
  const HostTensor* twin = nullptr;       // of the reference
};

/// Compares the taps of a subject with those of hypotheses about it, whatever the specification
/// says about their values: keys that no query may see count as all others.
class Agreement {
 public:
  Agreement(const CaseRun& run, const JudgedTrace& judged) : run_(run), judged_(judged) {}

  /// The subject has this tap, in the shape of the oracle's.
  bool comparable(const std::string& tap, const HostTensor* oracle) const;
  /// ||K - O|| / ||O||; of a decision the share of its rows that differ. Infinite where they cannot
  /// be compared.
  double gap(const std::string& tap, const HostTensor* oracle) const;
  /// Within the limits of this mode that rounding explains. Of a decision: no row is another choice
  /// than the one of `dialect` from the same scores, equal scores aside.
  bool agrees(const std::string& tap, const Expected& expected, Mode mode,
              const Dialect& dialect) const;

 private:
  bool same_keys(const std::string& tap, const HostTensor& oracle) const;
  bool same_experts(const std::string& tap, const HostTensor& oracle, const Dialect& dialect) const;
  bool same_values(const std::string& tap, const Expected& expected, Mode mode) const;
  const HostTensor* input(const std::string& tap) const;

  const CaseRun& run_;
  const JudgedTrace& judged_;
};

}  // namespace dsv32::harness
