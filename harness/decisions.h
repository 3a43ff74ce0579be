#pragma once

#include "harness/compare.h"

namespace dsv32::harness {

/// Topk sets. Always: indices in range, visible, unique, min(index_topk, visible) of them, -1 elsewhere.
/// Against the judged side's own stored scores (when it has them): identical set under the total order, exact ties free.
/// Against the oracle's scores: every exclusive element within the band of the cut.
Verdict judge_topk(const Comparison& c, const HostTensor* own_scores);

/// Expert sets: in range, unique, right count; legitimate under the oracle's router logits within the band, group
/// choice included. `bias` [E]; `own_logits`: the judged side's logits when it has them.
Verdict judge_experts(const Comparison& c, const HostTensor& bias, const HostTensor* own_logits);

/// How often a set differs from the oracle's own choice: for the free mode report.
struct FlipCount {
  int64_t rows = 0, differing_rows = 0, elements = 0, differing_elements = 0;
};
FlipCount count_flips(const HostTensor& judged, const HostTensor& oracle, const Batch& batch);

}  // namespace dsv32::harness
