#pragma once

#include <string>
#include <vector>

#include "harness/report/report.h"

/// What the renderings share: verdicts grouped by case and subject, and the few numbers they all
/// show.
namespace dsv32::harness {

/// Every verdict about one subject in one case and suite, in the order of the report.
struct Group {
  std::string case_name, suite;
  Subject subject;
  std::vector<const Verdict*> verdicts;
  std::vector<const Finding*> findings;
  Counts counts;
  size_t taps = 0, gradients = 0;          // distinct names
  const Verdict* first_failure = nullptr;  // as the finding says, else the first in report order
  /// Largest margin among executed checks with measures; an exact check that passed is not close to
  /// anything and does not count.
  const Verdict* worst = nullptr;

  bool failed() const;
  bool green() const;
  /// "PASS", "FAIL", "MISSING", "VACUOUS", "UNDECIDED" or "SKIPPED".
  std::string state() const;
};

std::vector<Group> group_verdicts(const Report& report);

/// The measure with the largest margin; nullptr without measures.
const Measure* worst_measure(const Verdict& verdict);
/// By mode, then worst first; equal ones in report order.
std::vector<const Verdict*> worst_first(const std::vector<const Verdict*>& verdicts);
/// Failed verdicts of a group, the first failure first, then worst first.
std::vector<const Verdict*> failures(const Group& group);

/// "row ratio 612 (limit 3)"
std::string measure_text(const Measure& measure);
/// "[1,4,0,3] (batch 1, token 4, head 0, lane 3): expected 0.12, got -0.46"; nothing without a
/// worst element.
std::string worst_text(const Verdict& verdict);
/// What the op of a staged tap reads: "reads embed, attn.out"; empty for other checks.
std::string inputs_text(const Verdict& verdict);
/// "0.38 % off, rounding allows 2e-05 %"; "" where nothing of the kind was measured.
std::string plain_text(const Verdict& verdict);
/// "0.61 of limit", "beyond an exact limit"
std::string severity_text(const Verdict& verdict);
/// "219 taps, 402 gradients"
std::string coverage_text(const Group& group);
/// "golden vs oracle", "loss_descent: candidate fork.safetensors vs golden"
std::string subject_text(const Group& group);
/// "PASS", "FAIL", "NOT GREEN" or "NOTHING CHECKED" for the whole report.
std::string verdict_word(const Report& report);
/// "1242 checks", "12 of 1242 checks failed, 3 skipped"
std::string counts_text(const Counts& counts);
/// The report's command narrowed to one check.
std::string repro_command(const Report& report, const Verdict& verdict);

/// "final loss 4.21, loss fell by 0.53" of this group's case and suite; empty without figures.
std::string figures_text(const Report& report, const Group& group);
/// "3.2 s, 1030 tokens per second, 0.61 GiB at its peak" of this group's suite; empty if unknown.
std::string cost_text(const Report& report, const Group& group);
/// "loss 4.21, perplexity 67.4, best token 38 %, 120 tokens".
std::string score_text(const AnswerScore& score);
/// The group is the last one of its case and suite, so that figures can follow it.
bool ends_suite(const std::vector<Group>& groups, size_t at);

/// Verdicts of one trust state that share a note: "12: absent from the file (layers.0.ix.q, ...)".
struct NoteGroup {
  std::string note;
  std::vector<std::string> taps;
};
std::vector<NoteGroup> notes_of(const Group& group, Trust trust);
std::string note_text(const NoteGroup& notes);

}  // namespace dsv32::harness
