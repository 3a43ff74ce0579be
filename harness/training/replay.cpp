#include "harness/training/replay.h"

#include <cmath>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "src/model/check_name.h"
#include "src/model/sketch.h"

namespace dsv32::harness {
namespace {

/// How far the oracle moved a parameter, which is the unit of its error. Rounding the value itself
/// in every step is no error: where next to nothing moves (weight decay alone) it is the unit. The
/// factor 1 - lr * decay is rounded alike in every step, so that these errors add up.
double unit_of(const ReplayedRun& oracle, const std::string& name) {
  const double steps = static_cast<double>(oracle.loss.size());
  const double rounding =
      epsilon(DType::float32) / 2 * steps * training::norm_of(oracle.end.at(name));
  return std::max(training::distance(oracle.end.at(name), oracle.start.at(name)),
                  rounding / limit_of("replay.parameter"));
}

Verdict parameter_check(const Subject& subject, const std::string& name, double distance,
                        double unit, int64_t elements) {
  Verdict verdict = training_check(subject, end_name("param", name),
                                   by_limit("replay.parameter", distance / unit), elements);
  verdict.layer = weight_layer(name);
  return verdict;
}

/// From 16 projections; the mean square of a +-1 projection is the squared norm.
double sketched_distance(const golden::TrainingGolden& golden, int64_t at,
                         const ParameterSketch& oracle) {
  double squares = 0;
  for (int64_t p = 0; p < kParameterProjections; ++p) {
    const double d =
        golden.parameter_projections.at(at * kParameterProjections + p) - oracle.projections[p];
    squares += d * d / kParameterProjections;
  }
  return std::sqrt(squares) / sketch_factor(kParameterProjections);
}

ParameterSketch sketch_of(const std::string& name, const training::Tensor& value) {
  const training::Tensor flat = value.to(torch::kFloat64).to(torch::kCPU).contiguous();
  const int64_t size = flat.numel();
  return sketch_parameter(
      std::span<const double>(flat.data_ptr<double>(), static_cast<size_t>(size)),
      parameter_codes(name, size));
}

}  // namespace

double loss_distance(double loss, double expected) {
  return std::fabs(loss - expected) / std::max(std::fabs(expected), 1.0);
}

Verdict training_check(const Subject& subject, const std::string& name, Measure measure,
                       int64_t checked) {
  Verdict verdict;
  verdict.subject = subject;
  verdict.tap = name;
  verdict.mode = Mode::forced;
  verdict.checked = checked;
  verdict.measures.push_back(std::move(measure));
  settle(verdict);
  return verdict;
}

ReplayedRun replay_run(TrainingSide& side, const training::Recipe& recipe,
                       const std::vector<Trace>& decisions,
                       const std::function<bool(const std::string&)>& strays) {
  ReplayedRun run;
  run.start = side.parameters().clone();
  for (int64_t t = 0; t < recipe.steps; ++t) {
    const training::StepRecord record = side.step(t, &decisions.at(t));
    run.loss.push_back(record.loss);
    run.grad_norm.push_back(record.grad_norm.front());
    for (const std::string& name : record.gradients.names())
      if (strays(name)) run.stray_gradients.try_emplace(name, t);
  }
  run.end = side.parameters().clone();
  return run;
}

std::vector<Verdict> judge_curve(const std::string& config_name, const Subject& subject,
                                 const std::vector<double>& loss,
                                 const std::vector<double>& grad_norm, const ReplayedRun& oracle) {
  std::vector<Verdict> verdicts;
  for (size_t t = 0; t < oracle.loss.size(); ++t) {
    const int64_t step = static_cast<int64_t>(t);
    verdicts.push_back(training_check(subject, step_name(step, "loss"),
                                      by_limit("replay.loss", {.config = config_name},
                                               loss_distance(loss.at(t), oracle.loss[t]))));
    verdicts.push_back(training_check(subject, step_name(step, "grad_norm"),
                                      by_limit("replay.grad_norm", {.config = config_name},
                                               relative(grad_norm.at(t), oracle.grad_norm[t]))));
  }
  return verdicts;
}

std::vector<Verdict> judge_parameters(const Subject& subject, const ReplayedRun& judged,
                                      const ReplayedRun& oracle,
                                      const std::function<bool(const std::string&)>& moves) {
  std::vector<Verdict> verdicts;
  for (const std::string& name : oracle.end.names()) {
    if (!moves(name)) continue;
    const training::Tensor& end = oracle.end.at(name);
    verdicts.push_back(parameter_check(subject, name, training::distance(judged.end.at(name), end),
                                       unit_of(oracle, name), end.numel()));
  }
  return verdicts;
}

std::vector<Verdict> judge_golden_parameters(const golden::TrainingGolden& golden,
                                             const ReplayedRun& oracle) {
  std::vector<Verdict> verdicts;
  const int64_t count = std::ssize(golden.parameter_names);
  const int64_t last = std::ssize(oracle.loss) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const std::string& name = golden.parameter_names[i];
    const int64_t at = last * count + i;
    const ParameterSketch sketch = sketch_of(name, oracle.end.at(name));
    const double gap = std::max(sketched_distance(golden, at, sketch),
                                std::fabs(golden.parameter_norms.at(at) - sketch.norm));
    verdicts.push_back(parameter_check(golden_side(), name, gap, unit_of(oracle, name),
                                       oracle.end.at(name).numel()));
  }
  return verdicts;
}

void judge_by(std::string_view check, const Where& where, Verdict& verdict) {
  verdict.trust = Trust::pass;
  for (Measure& measure : verdict.measures) measure = by_limit(check, where, measure.measured);
  settle(verdict);
}

}  // namespace dsv32::harness
