#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "harness/cases/agreement.h"
#include "harness/cases/toggles.h"

namespace dsv32::harness {

/// The judged taps of one question: those that fail, and those that pass, which no toggle may move.
struct Findable {
  Mode mode = Mode::staged;
  std::vector<std::string> failing, passing;  // in execution order
};

/// How the subject's taps look when the reference computes some dialect.
struct View {
  double gap = 0;
  bool agrees = false;
};
using Look = std::map<std::string, View>;

/// Toggles that give the same numbers, and the failing taps that they explain.
struct Choice {
  std::vector<const Toggle*> alternatives;  // as toggles_for orders them
  std::vector<std::string> taps;
};

/// Looks for the smallest set of toggles that explains failing taps. Every look at a dialect costs
/// one float64 pass of the reference, and two more where it comes near the failing taps.
class Search {
 public:
  Search(const CaseRun& run, const JudgedTrace& judged, Findable findable,
         std::map<int64_t, Dialect> layer_dialects = {});

  /// Of these failing taps those that do not agree under `now`.
  std::vector<std::string> left(const std::vector<std::string>& taps, const Dialect& now);
  /// The choices, in the order in which they were made, that explain `failing` (a part of the
  /// failing taps) on top of `start` without moving any of `passing`; `now` becomes the dialect
  /// with all of them.
  std::vector<Choice> explain(const std::vector<std::string>& failing,
                              const std::vector<std::string>& passing,
                              const std::vector<const Toggle*>& toggles, Dialect& now);
  /// Planting the toggle moves one of these taps, which pass, beyond rounding.
  bool moves(const Toggle& toggle, const std::vector<std::string>& taps);
  const Look& look(const Dialect& dialect);

 private:
  /// One step of `explain`.
  struct Step {
    std::vector<std::string> failing, passing;  // left, and that must not move
    std::vector<const Toggle*> toggles;
    Dialect now;
  };
  /// One dialect in float64 and as the subject may round.
  struct Rounding {
    Trace oracle, reference, twin;
  };
  Rounding rounding(const Dialect& dialect, const std::set<std::string>& taps) const;
  bool agrees_as_before(const Rounding& before, const std::string& tap, const HostTensor& moved,
                        const Dialect& dialect) const;
  std::vector<std::string> explained(const Step& step, const Dialect& dialect);
  std::vector<Choice> one(const Step& step);
  std::vector<Choice> two(const Step& step);
  std::vector<const Toggle*> movers(const Step& step);
  /// One pass that makes these taps.
  Trace run(const Dialect& dialect, DType dtype, const std::set<std::string>& taps) const;
  Trace twin(const Dialect& dialect, const std::set<std::string>& taps) const;
  RunOptions options(const Dialect& dialect, DType dtype, const std::set<std::string>& taps) const;
  /// Of these taps those that may come out otherwise than under the subject's dialect.
  std::set<std::string> reached(const Dialect& dialect, const std::set<std::string>& taps) const;
  void add_sources(const std::string& tap, std::set<std::string>& stems) const;
  void measure(const Dialect& dialect, Look& look) const;
  void measure_first(Look& look);

  const CaseRun& run_;
  const JudgedTrace& judged_;
  Agreement agreement_;
  Findable findable_;
  std::map<int64_t, Dialect> layer_dialects_;
  std::set<std::string> taps_;  // that fail, and that pass at the places of those
  std::vector<std::pair<Dialect, std::unique_ptr<Look>>> looks_;
  Rounding first_;  // under the subject's dialect
};

}  // namespace dsv32::harness
