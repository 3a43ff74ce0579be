#pragma once

#include <optional>
#include <span>
#include <vector>

#include "golden/golden.h"
#include "harness/limits.h"
#include "harness/verdict.h"
#include "src/model/batch.h"
#include "src/model/trace.h"

/// The face of the comparison: values in, Verdicts out. No torch, no files.
namespace dsv32::harness {

/// The two traces (and one probe) that a judged tap is measured against.
struct Yardstick {
  const Trace* oracle = nullptr;     // float64
  const Trace* reference = nullptr;  // same dtype as the judged side; nullptr: the cap alone decides
  const Trace* probe = nullptr;      // oracle with inputs and weights perturbed by one rounding; nullptr: no cap
};

/// One judged tap with all that its verdict needs.
struct Comparison {
  std::string case_name;
  std::string subject;
  const ModelConfig* config = nullptr;
  const Batch* batch = nullptr;
  TapName tap;
  Mode mode = Mode::staged;
  DType dtype = DType::float32;          // the judged side's dtype
  const HostTensor* judged = nullptr;
  Yardstick yardstick;
  /// Attention taps: attended keys [B,S,T] as 0/1 from the decisions in force (nullptr: all visible keys).
  const std::vector<uint8_t>* support = nullptr;
};

/// Rows, elements and tails of a continuous tap or a gradient (DESIGN 3). NaN fails. A tap whose oracle is all zero
/// demands exact zero; an all-zero gradient of a used weight is vacuous.
Verdict compare_values(const Comparison& c);

/// The same for a sketched golden: chosen rows in full, row norms and projections of all rows.
Verdict compare_sketch(const Comparison& c, const golden::SketchedTap& judged);

/// Attended keys [B,S,T] that follow from a topk tap (sparse) or from visibility (dense mode).
std::vector<uint8_t> attended_keys(const ModelConfig& config, const Batch& batch, const HostTensor* topk);
/// Key t visible to query s of batch row b.
bool visible(const Batch& batch, int64_t b, int64_t s, int64_t t);

}  // namespace dsv32::harness
