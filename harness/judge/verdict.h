#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/judge/defect.h"
#include "src/model/errors.h"

namespace dsv32::harness {

/// What a check is worth. Only `pass` is green; `skipped` needs a reason and is never counted as
/// passed. `undecided`: the evidence is too weak to tell (the decisions are not in the file).
enum class Trust { pass, fail, vacuous, missing, skipped, undecided };
std::string_view to_string(Trust trust);

/// Which question a check answers (docs/architecture.md 3).
enum class Mode { staged, forced, free, exact };
std::string_view to_string(Mode mode);

/// Whose numbers are judged. What an implementation of ours does in the SIMT executor is
/// `optimized` too.
enum class Party { golden, reference, optimized, candidate };
std::string_view to_string(Party party);

/// What the numbers are measured against: the float64 run, the golden of a training, or the other
/// trace of `compare`.
enum class Against { oracle, golden, trace };
std::string_view to_string(Against against);

/// Who is judged. Two subjects are the same when all three agree.
struct Subject {
  Party party = Party::candidate;
  /// For people only: "golden, 2 ranks", "reference float32", "candidate fork.safetensors".
  std::string label;
  Against against = Against::oracle;

  auto operator<=>(const Subject&) const = default;
};

/// One number against one limit. `measured <= limit` passes; NaN fails.
struct [[nodiscard]] Measure {
  /// "row ratio", "tensor ratio", "cap", "tail", "max tail", "relative", "exact".
  std::string metric;
  double measured = 0;
  double limit = 0;
  std::string basis;  // why this limit
  bool within() const { return measured <= limit; }
  /// measured / limit; infinite when the limit is 0 and something was measured.
  double margin() const;
};

/// The worst place of a tap.
struct Worst {
  std::vector<int64_t> index;  // of the element, in the tap's shape
  int64_t row = -1;            // row number as judged
  double expected = 0, got = 0;
};

/// The error of a whole tap in plain words: relative L2, and what rounding may make of it.
struct PlainError {
  double relative = 0, allowed = 0;
};

/// Where the error of a failing tap lies, small enough for a report. One digit a cell, as
/// shade_of gives it; '.' is not judged. Of a decision 9 is a pick that the oracle does not
/// make, 4 one that only the oracle makes, 0 one of both.
struct Picture {
  std::string rows, columns;                // what they are: "tokens", "heads"
  int64_t row_count = 0, column_count = 0;  // of the tap; neighbours share a cell
  int64_t batch = 0;                        // rows of one sequence; 0: rows are no tokens
  std::vector<std::string> cells;           // one text a row
};

/// A training curve and what it is held against.
struct Curve {
  std::vector<double> values, expected;
  std::vector<double> low, high;  // the band that clean runs stay in; empty: there is none
};

/// How often a decision is another one than the oracle's.
struct Choices {
  int64_t rows = 0;        // that were judged
  int64_t determined = 0;  // without a choice: every visible key is taken
  int64_t differing = 0;
};

/// A number over its limit as one digit: each step is a factor of sqrt(10), 1 is up to the limit, 2
/// and more beyond it, 9 at least 1000 times the limit or not a number.
int shade_of(double share);

/// One check: data, not a print.
struct [[nodiscard]] Verdict {
  std::string case_name;  // like the suite it is set by Findings (harness/job/findings.h)
  std::string suite;      // a training suite; empty: the model's own taps
  Subject subject;
  /// "layers.0.ix.q", "grad.lm_head.weight", or a check name: "weights loaded", "step 7 loss".
  std::string tap;
  std::optional<int64_t> layer;
  Mode mode = Mode::exact;
  Trust trust = Trust::pass;
  std::vector<Measure> measures;
  std::optional<Worst> worst;
  std::optional<PlainError> plain = {};  // of a continuous tap
  std::optional<Picture> picture = {};   // of a failing tap
  std::optional<Curve> curve = {};       // of a training
  std::optional<Choices> choices = {};   // of a decision
  int64_t checked = 0;                   // rows or elements that were compared
  /// "gain 2.500", "one head (3) holds 98 % of the error"; empty when nothing stands out.
  std::string structure;
  std::optional<double> gain = {};  // of a failure that one factor on the right values explains
  std::string note;                 // why vacuous, missing or skipped; what a decision check found

  /// The largest margin of its measures; 0 without measures.
  double margin() const;
};

/// Fails the verdict when one of its measures is not within its limit.
void settle(Verdict& verdict);
/// A check whose answer is determined: how many things are wrong, of how many, and which first.
Verdict exact_check(const Subject& subject, const std::string& name, double wrong,
                    const std::string& basis, int64_t checked, const std::string& note = "");
void append(std::vector<Verdict>& to, std::vector<Verdict> from);

/// What -k looks at: "case/subject/tap", "case/suite/subject/tap" in a training suite.
std::string check_path(const Verdict& verdict);

/// Who is wrong in one case, in one sentence.
enum class Fault { none, candidate, optimized, reference, golden, configuration };
std::string_view to_string(Fault fault);

/// What a training suite measured on the way: data, not a check.
struct Figure {
  std::string case_name, suite;
  std::string name;  // "final loss"
  double value = 0;
};

/// What was found about one subject in one case.
struct Finding {
  std::string case_name;
  Subject subject;
  Fault fault = Fault::none;
  std::string first_tap;  // first failing tap in execution order; "" if none
  /// "first divergence layers.0.ix.q (staged): row ratio 612, limit 3".
  std::string headline;
  /// Named causes, best first: "matches dialect hf: ..."; may be empty.
  std::vector<std::string> causes;
  std::string suite = {};            // as the verdicts'
  std::vector<Defect> defects = {};  // the gravest first
  std::string profile = {};          // "spec-1 + {k-norm-eps}"; "" without a defect
};

}  // namespace dsv32::harness
