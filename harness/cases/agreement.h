#pragma once

#include <cstdint>
#include <functional>
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
  /// ||K - O|| / ||O||; of a decision the share of its rows that are another choice than the one of
  /// `dialect`. Infinite where they cannot be compared.
  double gap(const std::string& tap, const HostTensor* oracle, const Dialect& dialect) const;
  /// Within the limits of this mode that rounding explains. Of a decision: no row is another choice
  /// than the one of `dialect` from the same scores, equal scores aside.
  bool agrees(const std::string& tap, const Expected& expected, Mode mode,
              const Dialect& dialect) const;

 private:
  struct RowCount {
    int64_t rows = 0, other = 0;
  };
  /// Rows that choose otherwise; what decides is valid as long as the trace and the oracle are.
  RowCount other_choices(const std::string& tap, const HostTensor& oracle,
                         const Dialect& dialect) const;
  RowCount count_rows(const std::function<bool(int64_t)>& same) const;
  std::function<bool(int64_t)> same_keys(const std::string& tap, const HostTensor& oracle) const;
  std::function<bool(int64_t)> same_experts(const std::string& tap, const HostTensor& oracle,
                                            const Dialect& dialect) const;
  bool same_values(const std::string& tap, const Expected& expected, Mode mode) const;
  const HostTensor* input(const std::string& tap) const;

  const CaseRun& run_;
  const JudgedTrace& judged_;
};

}  // namespace dsv32::harness
