#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dsv32::harness {

/// So many of so many rows.
struct RowShare {
  int64_t rows = 0, of = 0;
};

/// What one defect alone does to the model: the float64 run with it against the one without.
struct Severity {
  double logits = 0;  // relative L2 over the judged rows
  double loss_before = 0, loss_after = 0;
  RowShare other_top1;     // rows whose best token is another
  RowShare other_keys;     // rows that select other keys in some layer
  RowShare other_experts;  // rows that go to other experts in some layer
  /// For sorting: the larger of the relative changes of logits and loss.
  double weight() const;
};

/// One thing that an implementation does otherwise, or a failing tap that nothing explains.
struct Defect {
  std::string name;  // "k-norm-eps"; "a or b" when both give the same numbers; "" if unexplained
  std::string
      words;  // "k_norm with eps 1e-5 instead of 1e-6", or what an unexplained tap looks like
  std::string evidence = {};      // of the taps themselves: "56 of 66 rows select future keys"
  std::vector<std::string> taps;  // the failing taps that it explains, in execution order
  std::vector<int64_t> layers;    // that it is limited to; empty: all that have these taps
  std::optional<Severity> severity;
  bool unexplained() const { return name.empty(); }
};

/// "logits 41 % off, loss 5.53 -> 5.45, ...": what a severity says in words; "" when nothing moves.
std::string in_words(const Severity& severity);
/// The gravest first, equal ones as they stand.
void sort_by_severity(std::vector<Defect>& defects);
/// One line: words, in which layers, the gravest consequence.
std::string headline_of(const Defect& defect);

}  // namespace dsv32::harness
