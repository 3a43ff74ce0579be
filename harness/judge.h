#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/compare.h"

namespace dsv32::harness {

/// Everything about one subject in one case.
struct Evidence {
  std::string subject;
  const Case* c = nullptr;
  const Batch* batch = nullptr;
  DType dtype = DType::float32;
  bool is_file = false;                     // absent taps are listed, not failed, as long as logits or a loss is there
  const Trace* judged = nullptr;
  const golden::Golden* golden = nullptr;   // set when the judged side is a golden (its sketches are used)
  Yardstick staged;                         // oracle and reference fed with the judged side's own taps
  Yardstick forced;                         // end to end with the judged side's decisions replayed
  std::map<std::string, HostTensor> biases; // e_score_correction_bias by weight name
};

/// Every verdict about this subject, in execution order: shapes, exact rules, decisions, staged and forced values,
/// gradients. Taps without evidence become `missing` or `skipped` with a reason.
std::vector<Verdict> judge(const Evidence& evidence);

/// The first failing tap in execution order, staged before forced; nullptr if none fails.
const Verdict* first_failure(const std::vector<Verdict>& verdicts);

/// Who is at fault, from the three answers of one case: do golden, reference and candidate agree with the oracle?
/// DESIGN 3, arbitration. `candidate` empty when there is none.
Fault arbitrate(bool golden_ok, bool golden_present, bool reference_ok, std::optional<bool> candidate_ok);

}  // namespace dsv32::harness
