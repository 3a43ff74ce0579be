#include "harness/cases/causes.h"

#include <cmath>
#include <optional>

#include "harness/judge/decisions.h"
#include "harness/judge/judge.h"
#include "harness/judge/keys.h"
#include "harness/judge/limits.h"
#include "harness/judge/rows.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

/// Rows of a tap that count here: padded queries out, attended keys only; index scores with their
/// -inf pattern.
RowLayout layout_of(const CaseRun& run, const JudgedTrace& judged, TapName tap,
                    const Shape& shape) {
  if (tap.info.kind == TapKind::scores) tap.info.kind = TapKind::token;
  const HostTensor* topk = tap.layer ? judged.trace->find(layer_tap(*tap.layer, "topk")) : nullptr;
  const std::vector<uint8_t> attended = attended_keys(run.the_case().config, run.batch(), topk);
  return {tap, shape, &run.batch(), &attended, RowView::judged};
}

/// L2 distance and L2 norm of `b`; equal infinities are no distance.
struct Gap {
  double distance = 0, norm = 0;
};
Gap gap(const RowLayout& layout, const HostTensor& a, const HostTensor& b) {
  double distance = 0, norm = 0;
  std::vector<double> x, y;
  for (const Row& row : layout.rows()) {
    layout.gather(a, row, x);
    layout.gather(b, row, y);
    for (size_t i = 0; i < x.size(); ++i) {
      if (x[i] != y[i]) distance += (x[i] - y[i]) * (x[i] - y[i]);
      if (std::isfinite(y[i])) norm += y[i] * y[i];
    }
  }
  return {std::sqrt(distance), std::sqrt(norm)};
}

/// The subject's tap is what the hypothesis gives, up to rounding: the whole-tensor test of the
/// limits table.
bool same_values(const CaseRun& run, const JudgedTrace& judged, const Verdict& failure,
                 const HostTensor& values, const HostTensor& oracle, const HostTensor& reference) {
  const TapName tap = *parse_tap(failure.tap);
  const RowLayout layout = layout_of(run, judged, tap, oracle.shape());
  const Gap rounding = gap(layout, reference, oracle);
  const double noise = std::max(rounding.distance, rounding_floor(judged.dtype) * rounding.norm);
  const double limit = limits_for(tap, failure.mode, judged.dtype).tensor_ratio *
                       small_tensor_factor(oracle.numel());
  return gap(layout, values, oracle).distance <= limit * noise;
}

/// The sets differ in no more rows than rounding alone makes them differ.
bool same_sets(const Batch& batch, const HostTensor& judged, const HostTensor& oracle,
               const HostTensor& reference) {
  return count_flips(judged, oracle, batch).differing_rows <=
         count_flips(reference, oracle, batch).differing_rows;
}

/// nullopt for a hypothesis that cannot be run on these shapes: it explains nothing.
std::optional<Hypothesis> try_under(const CaseRun& run, const JudgedTrace& judged,
                                    const Dialect& dialect, const Verdict& failure) {
  try {
    return run.under(judged, dialect, failure);
  } catch (const Error& error) {
    if (error.code() != ExitCode::usage) throw;
    return std::nullopt;
  }
}

bool explains(const CaseRun& run, const JudgedTrace& judged, const Dialect& dialect,
              const Verdict& failure) {
  const std::optional<Hypothesis> tried = try_under(run, judged, dialect, failure);
  if (!tried) return false;
  const Hypothesis& hypothesis = *tried;
  const HostTensor* values = judged.trace->find(failure.tap);
  const HostTensor* oracle = hypothesis.oracle.find(failure.tap);
  const HostTensor* reference = hypothesis.reference.find(failure.tap);
  if (values == nullptr || oracle == nullptr || reference == nullptr) return false;
  const TapName tap = *parse_tap(failure.tap);
  if (tap.info.is_decision()) {
    return same_sets(run.batch(), *values, *oracle, *reference);
  }
  return same_values(run, judged, failure, *values, *oracle, *reference);
}

std::vector<std::string> matching_dialects(const CaseRun& run, const JudgedTrace& judged,
                                           const Verdict& failure) {
  std::vector<std::string> causes;
  for (const Dialect& preset : dialect_presets()) {
    if (same_function(run.the_case().config, preset, judged.dialect)) continue;
    if (!explains(run, judged, preset, failure)) continue;
    JudgedTrace renamed = judged;
    renamed.dialect = preset;
    if (first_failure(run.judge_subject(renamed)) != nullptr) continue;
    causes.push_back("matches dialect " + preset.name + ": " + dialect_consequence(preset.name) +
                     "; declare it with --dialect " + preset.name);
  }
  return causes;
}

/// A bug of the KL can only be seen where there is one.
bool applies(const KnownBug& bug, const Objective& objective) {
  return bug.objective.kl == KlStage::none || objective.kl != KlStage::none;
}

std::vector<std::string> matching_bugs(const CaseRun& run, const JudgedTrace& judged,
                                       const Verdict& failure) {
  std::vector<std::string> causes;
  const std::string stem = tap_stem(failure.tap);
  for (const KnownBug& bug : known_bugs()) {
    if (bug.first_tap != stem || !applies(bug, run.objective())) continue;
    Dialect planted = judged.dialect;
    bug.plant(planted);
    if (explains(run, judged, planted, failure))
      causes.push_back("known bug " + bug.name + ": " + bug.description);
  }
  return causes;
}

}  // namespace

std::vector<std::string> find_causes(const CaseRun& run, const JudgedTrace& judged,
                                     const std::vector<Verdict>& verdicts) {
  const Verdict* failure = first_failure(verdicts);
  if (failure == nullptr || !parse_tap(failure->tap)) return {};
  std::vector<std::string> causes = matching_dialects(run, judged, *failure);
  if (causes.empty()) causes = matching_bugs(run, judged, *failure);
  return causes;
}

}  // namespace dsv32::harness
