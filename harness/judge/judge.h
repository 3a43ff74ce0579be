#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/judge/compare.h"
#include "harness/judge/decisions/tokens.h"
#include "src/model/objective.h"

namespace dsv32::harness {

/// The runs that one mode is judged against: the yardsticks of all taps.
struct Yardsticks {
  const Trace* oracle = nullptr;  // nullptr: this mode asks no question
  const Trace* reference = nullptr;
  const Trace* probe = nullptr;
  const Trace* twin = nullptr;

  /// Of a decision, that of the scores that it follows from.
  Yardstick of(const TapName& tap) const;
};

/// Everything about one subject in one case.
struct Evidence {
  Subject subject;
  const Case* c = nullptr;
  const Batch* batch = nullptr;
  Objective objective = {};  // what the runs differentiate
  DType dtype = DType::float32;
  bool excluded_experts_at_zero = false;  // as Comparison
  bool is_file = false;  // absent taps are listed, not failed, as long as logits or a loss is there
  /// Ops of which every input is in the trace are judged, staged only, and no others: a trace of
  /// mode `ops`.
  bool ops_only = false;
  std::vector<std::string> unheld = {};  // "attn.probs": inside a fused kernel, so never there
  const Trace* judged = nullptr;
  /// Set when the judged side is a golden: its sketches are used.
  const golden::Golden* golden = nullptr;
  Yardsticks staged;                         // fed with the judged side's own taps
  Yardsticks forced;                         // end to end with the judged side's decisions replayed
  std::map<std::string, HostTensor> biases;  // e_score_correction_bias by weight name
  /// The forward taps that are judged, where the run made no others (a segment); empty: all. What
  /// comes before them is the segment's input, and there.
  std::vector<std::string> taps = {};
  /// The gradients that a part of a backward pass gave, which began with a given upstream gradient;
  /// empty: those of the objective.
  std::vector<std::string> gradients = {};
  double gradient_scale = 0;  // largest norm of those of the same layer that were judged before
  const RankPieces* pieces = nullptr;  // of a judged side that came in pieces
  const RankSums* sums = nullptr;      // of one that came in summands
  std::function<void()> after_each_tap = {};
  /// The trace that the yardsticks were fed with when it is not `judged` (which then holds a part
  /// of it only).
  const Trace* fed = nullptr;
  /// Of a decoding, whose history is the batch: what it emitted. Absent taps are then not listed.
  std::optional<Emitted> emitted = {};
};

/// The pieces that this tensor came in; nullptr for one that came whole.
const std::vector<RankPiece>* pieces_of(const Evidence& evidence, const std::string& tensor);
/// The summands that it came in; nullptr for one that is no sum.
const std::vector<RankSummand>* summands_of(const RankSums* sums, const std::string& tensor);

/// The staged verdicts of the taps that are there, in execution order. They may be asked for early,
/// so that the staged runs are gone before the end-to-end ones, the largest, are made.
[[nodiscard]] std::vector<Verdict> judge_staged(const Evidence& evidence);

/// Whether selection is exercised, where the case is about it: the verdict that comes first.
[[nodiscard]] std::vector<Verdict> judge_selection(const Evidence& evidence);
/// The forced verdicts of the taps alone, without what is said once per subject.
[[nodiscard]] std::vector<Verdict> judge_forced(const Evidence& evidence);

/// The verdicts of `evidence.gradients`, and of those that should not be there.
[[nodiscard]] std::vector<Verdict> judge_gradients(const Evidence& evidence);

/// Every verdict about this subject: whether selection is exercised, then the `staged` ones (what
/// judge_staged gave), then all forced ones in execution order, then gradients in back-propagation
/// order. Asked once per subject: what belongs to no mode is said here. Taps without evidence
/// become `missing` or `skipped` with a reason. After a decision that a file does not hold (so it
/// was not replayed) values are judged in mode `free`.
[[nodiscard]] std::vector<Verdict> judge(const Evidence& evidence,
                                         std::vector<Verdict> staged = {});

/// The first failing tap in execution order, staged before forced; nullptr if none fails.
const Verdict* first_failure(const std::vector<Verdict>& verdicts);

/// Who is at fault, from the three answers of one case: do golden, reference and candidate agree
/// with the oracle? docs/architecture.md 3, arbitration. `candidate_ok` empty when there is no
/// candidate.
Fault arbitrate(bool golden_ok, bool golden_present, bool reference_ok,
                std::optional<bool> candidate_ok);

}  // namespace dsv32::harness
