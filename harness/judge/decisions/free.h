#pragma once

#include "harness/judge/comparison.h"
#include "harness/judge/decisions/exposure.h"

namespace dsv32::harness {

/// A continuous tap or a gradient after a decision that the judged trace does not hold (mode free).
/// Within the forced limits it passes: no decision turned. Else the rows that no legitimate turn
/// can have moved must be within them, and all others at most as far away as flips can carry them.
/// What then remains beyond rounding is `undecided`: it may be a flip, it may be a bug.
Verdict judge_free(const Comparison& c, const Exposure& exposure);

/// A verdict about a decision after another one that the trace does not hold: a failure is
/// `undecided` where rows before it may have turned.
Verdict judge_free_decision(const Comparison& c, const Exposure& exposure, Verdict verdict);

}  // namespace dsv32::harness
