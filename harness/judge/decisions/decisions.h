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

/// Margin of every decision of a tap, by row b * S + s, in units of the band within which a correct
/// implementation may decide otherwise: at most 1 may turn, more may not. Infinite where nothing is
/// decided (a query that sees no more keys than top-k takes, a padded row).
using Margins = std::vector<double>;
/// Of the oracle's selection: distance of the first score left out from the cut. `c` as above.
Margins selection_margins(const Comparison& c);
/// Of the oracle's expert choice: the smaller of its group margin and its expert margin.
Margins routing_margins(const Comparison& c, const HostTensor& bias);

/// How often a set differs from the oracle's own choice: for the free mode report.
struct FlipCount {
  int64_t rows = 0, differing_rows = 0, elements = 0, differing_elements = 0;
};
FlipCount count_flips(const HostTensor& judged, const HostTensor& oracle, const Batch& batch);

}  // namespace dsv32::harness
