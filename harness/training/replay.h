#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "golden/reader/training_golden.h"
#include "harness/judge/limits.h"
#include "harness/training/side.h"

/// A whole training run under the decisions of a golden: no legitimate flip separates two sides, so
/// that curves and parameters are compared value by value.
namespace dsv32::harness {

/// What a run leaves to be judged.
struct ReplayedRun {
  std::vector<double> loss, grad_norm;  // [steps]; the norm is the first group's
  training::TensorTable start, end;     // parameters
  /// Parameters that had a gradient although the recipe gives them none, and in which step first.
  std::map<std::string, int64_t> stray_gradients;
};

/// Runs every step of `recipe` with `decisions` replayed. `strays`: parameters that must not have a
/// gradient.
ReplayedRun replay_run(TrainingSide& side, const training::Recipe& recipe,
                       const std::vector<Trace>& decisions,
                       const std::function<bool(const std::string&)>& strays);

/// Distance of two losses relative to the expected one; a loss below one nat is as exact as its
/// logits, not as itself.
double loss_distance(double loss, double expected);

/// "step.7.loss", "step.7.grad_norm": relative distance from the oracle's run, in step order.
[[nodiscard]] std::vector<Verdict> judge_curve(const std::string& config_name,
                                               const Subject& subject,
                                               const std::vector<double>& loss,
                                               const std::vector<double>& grad_norm,
                                               const ReplayedRun& oracle);
/// "end.param.NAME" for every parameter that the recipe moves: distance from the oracle's last
/// value, relative to how far the oracle moved it.
[[nodiscard]] std::vector<Verdict> judge_parameters(
    const Subject& subject, const ReplayedRun& judged, const ReplayedRun& oracle,
    const std::function<bool(const std::string&)>& moves);
/// The same of a golden, from the norm and the projections that it holds of each.
[[nodiscard]] std::vector<Verdict> judge_golden_parameters(const golden::TrainingGolden& golden,
                                                           const ReplayedRun& oracle);

/// Judges what every measure of the verdict measured again, by another row of the limits.
void judge_by(std::string_view check, const Where& where, Verdict& verdict);

/// One forced check of one number.
Verdict training_check(const Subject& subject, const std::string& name, Measure measure,
                       int64_t checked = 1);

}  // namespace dsv32::harness
