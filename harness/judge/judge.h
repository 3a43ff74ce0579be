#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/judge/compare.h"
#include "src/model/objective.h"

namespace dsv32::harness {

/// Everything about one subject in one case.
struct Evidence {
  Subject subject;
  const Case* c = nullptr;
  const Batch* batch = nullptr;
  Objective objective = {};  // what the runs differentiate
  DType dtype = DType::float32;
  bool is_file = false;  // absent taps are listed, not failed, as long as logits or a loss is there
  std::vector<std::string> unheld = {};  // "attn.probs": inside a fused kernel, so never there
  const Trace* judged = nullptr;
  const golden::Golden* golden =
      nullptr;       // set when the judged side is a golden (its sketches are used)
  Yardstick staged;  // oracle and reference fed with the judged side's own taps
  Yardstick forced;  // end to end with the judged side's decisions replayed
  std::map<std::string, HostTensor> biases;  // e_score_correction_bias by weight name
  /// The trace that the yardsticks were fed with when it is not `judged` (which then holds a part
  /// of it only).
  const Trace* fed = nullptr;
};

/// Every verdict about this subject: whether selection is exercised, then all staged verdicts in
/// execution order, then all forced ones, then gradients in back-propagation order. Taps without
/// evidence become `missing` or `skipped` with a reason. After a decision that a file does not hold
/// (so it was not replayed) values are judged in mode `free`. A yardstick without an oracle asks no
/// question: call once with both, or once with each.
[[nodiscard]] std::vector<Verdict> judge(const Evidence& evidence);

/// The first failing tap in execution order, staged before forced; nullptr if none fails.
const Verdict* first_failure(const std::vector<Verdict>& verdicts);

/// Who is at fault, from the three answers of one case: do golden, reference and candidate agree
/// with the oracle? DESIGN 3, arbitration. `candidate_ok` empty when there is no candidate.
Fault arbitrate(bool golden_ok, bool golden_present, bool reference_ok,
                std::optional<bool> candidate_ok);

}  // namespace dsv32::harness
