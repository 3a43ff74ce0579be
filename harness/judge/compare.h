#pragma once

#include <optional>
#include <span>
#include <vector>

#include "golden/reader/golden.h"
#include "harness/judge/limits.h"
#include "harness/judge/verdict.h"
#include "src/model/batch.h"
#include "src/model/trace.h"

/// The face of the comparison: values in, Verdicts out. No torch, no files.
namespace dsv32::harness {

using dsv32::to_string;  // of shapes and dtypes, next to those of verdict.h

/// Relative perturbation of a probe: far above float32 rounding, far below anything nonlinear.
inline constexpr double kProbePerturbation = 1.0 / 4096;

/// The two traces (and one probe) that a judged tap is measured against.
struct Yardstick {
  const Trace* oracle = nullptr;  // float64
  const Trace* reference =
      nullptr;  // same dtype as the judged side; nullptr: the cap alone decides
  /// A float32 run whose inputs and weights were perturbed by relative kProbePerturbation; nullptr:
  /// no cap. One probe serves every dtype: for a dtype of epsilon e the sensitivity of a row is
  /// ||P-O|| * (e / 2) / kProbePerturbation.
  const Trace* probe = nullptr;
};

/// One judged tap with all that its verdict needs.
struct Comparison {
  Subject subject;
  const ModelConfig* config = nullptr;
  const Batch* batch = nullptr;
  TapName tap;
  Mode mode = Mode::staged;
  DType dtype = DType::float32;        // the judged side's dtype
  const HostTensor* judged = nullptr;  // nullptr for a sketch
  Yardstick yardstick;
  /// Attention and keys taps: attended keys [B,S,T] as 0/1 from the decisions in force (nullptr:
  /// all visible keys).
  const std::vector<uint8_t>* support = nullptr;
  /// Name of the config when the judged side is a golden: its relative distance is judged as well.
  std::string golden_config = {};
};

/// A verdict that names its subject, tap and mode; it passes until something is measured.
Verdict open_verdict(const Comparison& c);
/// A verdict that measured nothing, and why.
Verdict unmeasured(const Comparison& c, Trust trust, std::string note);
/// Fails the verdict when one of its measures is not within its limit.
void settle(Verdict& verdict);

/// Rows, elements and tails of a continuous tap or a gradient (DESIGN 3). NaN fails. A tap whose
/// oracle is all zero demands exact zero; an all-zero gradient of a used weight is vacuous.
Verdict compare_values(const Comparison& c);

/// SPEC 2: d(sum of the KL rows)/d(score) is student - target on the support. Of the judged side's
/// own three taps; `c.judged` is kl.dscores, `c.support` the support.
Verdict compare_score_gradient(const Comparison& c, const HostTensor& student,
                               const HostTensor& target);

/// The same for a sketched golden: chosen rows in full, row norms and projections of all rows.
Verdict compare_sketch(const Comparison& c, const golden::SketchedTap& judged);

/// The error that the tail test takes for noise at one element of the judged side (flat index).
/// 0 where the element is not judged.
double element_noise(const Comparison& c, int64_t element);

/// Attended keys [B,S,T] that follow from a topk tap (sparse) or from visibility (dense mode).
std::vector<uint8_t> attended_keys(const ModelConfig& config, const Batch& batch,
                                   const HostTensor* topk);
/// Key t visible to query s of batch row b.
bool visible(const Batch& batch, int64_t b, int64_t s, int64_t t);
/// Visible keys [B,S,T] as 0/1.
std::vector<uint8_t> visible_keys(const Batch& batch);

}  // namespace dsv32::harness
