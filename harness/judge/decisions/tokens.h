#pragma once

#include <cstdint>

#include "harness/judge/comparison.h"
#include "harness/judge/decisions/exposure.h"
#include "src/model/decoding.h"

namespace dsv32::harness {

/// What a greedy decoding emitted. docs/formats.md 14.
struct Emitted {
  const HostTensor* tokens = nullptr;  // [B,N] as handed in, with what stands behind an end
  Decoding decoding;
  const History* history = nullptr;  // made of these tokens
};

/// The tokens of a decoding (`gen.tokens`), each step on its own history; `c` is about `logits` of
/// the whole history. Measures:
/// "exact": tokens outside of the vocabulary, and other ones than eos behind the end of a row;
/// "own logits": steps whose token does not have the largest of the judged side's own logits, where
/// it has them (equal ones are free); "band": how far the oracle's logit of the worst token is
/// below its best one, in units of the noise of both. `exposure`: of decisions that the judged side
/// does not hold; what rows behind a near-tie may emit is undecided. nullptr: all are replayed.
Verdict judge_tokens(const Comparison& c, const Emitted& emitted, const Exposure* exposure);

}  // namespace dsv32::harness
