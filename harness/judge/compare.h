#pragma once

#include <cstdint>
#include <string>

#include "golden/reader/golden.h"
#include "harness/judge/comparison.h"
#include "harness/judge/verdict.h"
#include "src/model/batch.h"
#include "src/model/trace.h"

/// The face of the comparison: values in, Verdicts out. No torch, no files.
namespace dsv32::harness {

/// A verdict that names its subject, tap and mode; it passes until something is measured.
Verdict open_verdict(const Comparison& c);
/// Of an oracle with NaN or infinity in what is judged.
inline constexpr char kNotFinite[] = "the oracle is not finite: nothing can be judged";
/// A verdict that measured nothing, and why.
Verdict unmeasured(const Comparison& c, Trust trust, std::string note);

/// Rows, elements and tails of a continuous tap or a gradient (docs/architecture.md 3). NaN fails.
/// A tap whose oracle is all zero demands exact zero; an all-zero gradient of a used weight is
/// vacuous.
Verdict compare_values(const Comparison& c);

/// A rule that allows no tolerance (zeros, -inf, shapes) is broken.
bool breaks_exact_rule(const Verdict& verdict);
/// ||K - O|| / ||O|| over the judged rows.
double relative_error(const Comparison& c);

/// docs/spec.md 2: d(sum of the KL rows)/d(score) is student - target on the support. Of the judged
/// side's own three taps; `c.judged` is kl.dscores, `c.support` the support.
Verdict compare_score_gradient(const Comparison& c, const HostTensor& student,
                               const HostTensor& target);

/// The same for a sketched tap: chosen rows in full, row norms and projections of all rows.
Verdict compare_sketch(const Comparison& c, const golden::SketchedTap& judged);

/// The error that the tail test takes for noise at one element of the judged side (flat index).
/// 0 where the element is not judged.
double element_noise(const Comparison& c, int64_t element);

}  // namespace dsv32::harness
