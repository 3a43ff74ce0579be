#pragma once

#include <cstdint>

#include "harness/judge/comparison.h"

namespace dsv32::harness {

/// Topk sets (`c.judged` [B,S,index_topk], `c.tap` the topk tap, `c.yardstick` of ix.scores).
/// Measures:
/// "exact": picks that are out of range, not visible, repeated or too few or many (min(index_topk,
/// visible) of them); "own scores": rows whose set is not a top-k of the judged side's stored
/// scores (exact ties are free), when it has them; "band": distance of the worst exclusive element
/// from the oracle's cut, in units of twice the element noise of the scores. Order is free. Dense
/// mode is skipped. Rows that see no more than index_topk keys are determined.
Verdict judge_topk(const Comparison& c, const HostTensor* own_scores);

/// Expert sets (`c.judged` [B,S,K], `c.tap` the router.experts tap, `c.yardstick` of
/// router.logits). Measures: "exact" as above;
/// "own logits" and "band": how far the nearest legitimate choice is, group choice included, under
/// the judged side's own stored logits (in roundings of them) and under the oracle's (in element
/// noises of the logits). `bias` [E].
Verdict judge_experts(const Comparison& c, const HostTensor& bias, const HostTensor* own_logits);

/// How often a set differs from the oracle's own choice: for the free mode report.
struct FlipCount {
  int64_t rows = 0, differing_rows = 0, elements = 0, differing_elements = 0;
};
FlipCount count_flips(const HostTensor& judged, const HostTensor& oracle, const Batch& batch);

}  // namespace dsv32::harness
