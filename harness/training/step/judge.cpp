#include "harness/training/step/judge.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/adamw.h"
#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/step/book.h"
#include "src/bridge/bridge.h"
#include "src/model/check_name.h"
#include "src/training/one_ulp.h"

namespace dsv32::harness {
namespace {

using training::Tensor;
using training::TensorTable;

// Places of a step, first to last.
constexpr size_t kLoss = 0, kGradients = 1, kGradNorm = 2, kUpdates = 3;

template <typename T>
std::span<const T> values_of(const Tensor& tensor) {
  return {tensor.data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}

std::span<const double> moments_of(const training::OptimizerState& state, const std::string& key) {
  return state.has(key) ? values_of<double>(state.at(key)) : std::span<const double>();
}

double clip_factor(const training::Group& group, double norm) {
  constexpr double kTorchEps = 1e-6;
  return group.clip ? std::min(1.0, *group.clip / (norm + kTorchEps)) : 1.0;
}

double root_mean_square(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum / static_cast<double>(std::max<size_t>(values.size(), 1)));
}

/// Global norm of the gradients, each tensor's in its own precision, as torch computes it.
double global_norm(const TensorTable& gradients) {
  double sum = 0;
  for (const std::string& name : gradients.names()) {
    const Tensor& value = gradients.at(name);
    const double norm = torch::linalg_vector_norm(value).item<double>();
    sum += norm * norm;
  }
  return std::sqrt(sum);
}

}  // namespace

StepJudge::StepJudge(const TrainingJob& job, const training::Recipe& recipe,
                     const std::string& note)
    : job_(job),
      group_(recipe.groups.front()),
      batch_(make_batch(job.the_case)),
      oracle_(job, recipe, {.name = "oracle", .dtype = DType::float64}),
      judged_(job, recipe,
              {.name = "step by step" + note,
               .impl = job.impls.front(),
               .dialect = job.dialect,
               .bug = job.bug,
               .ulp_seed = job.perturbation_seed}),
      twin_(job, recipe, {.name = "twin"}) {
  for (const std::string& impl : job.impls)
    pupils_.push_back({.impl = impl, .subject = judged_side(impl, note)});
}

void StepJudge::step(int64_t index, const Trace* decisions, bool judged) {
  if (!judged) {
    const training::StepRecord record = oracle_.step(index, decisions);
    curve_.loss.push_back(record.loss);
    curve_.grad_norm.push_back(record.grad_norm.front());
    return;
  }
  steps_.push_back(index);
  Trace own_decisions;
  training::StepRecord oracle, twin;
  for (Pupil& pupil : pupils_) {
    const training::StepRecord own = judged_step(pupil, index, decisions);
    if (&pupil == &pupils_.front()) {
      own_decisions = own.decisions;
      if (decisions == nullptr) decisions = &own_decisions;
      twin_.trainables().table().assign(oracle_.parameters());
      training::move_one_ulp(twin_.trainables().table(), ~static_cast<uint64_t>(index));
      twin = twin_.trainer().measure(index, decisions);
      oracle = oracle_.trainer().measure(index, decisions);
    }
    judge_step(pupil, index, own, oracle, twin);
  }
  oracle_.trainer().apply(oracle);
  loss_.oracle.push_back(oracle.loss);
  loss_.twin.push_back(twin.loss);
  grad_norm_.oracle.push_back(oracle.grad_norm.front());
  grad_norm_.twin.push_back(global_norm(twin.gradients));
  curve_.loss.push_back(oracle.loss);
  curve_.grad_norm.push_back(oracle.grad_norm.front());
}

training::StepRecord StepJudge::judged_step(const Pupil& pupil, int64_t index,
                                            const Trace* decisions) {
  judged_.use(pupil.impl);
  judged_.set_to(oracle_);
  const bool moved = job_.perturbation_seed != 0;  // a clean run other than the first
  TensorTable& parameters = judged_.trainables().table();
  if (moved) training::move_one_ulp(parameters, job_.perturbation_seed + index);
  training::StepRecord own = judged_.trainer().measure(index, decisions);
  // The update is judged from the oracle's state: moved weights would be another start.
  if (moved) parameters.assign(oracle_.parameters());
  judged_.trainer().apply(own);
  return own;
}

/// While the judged side is as this implementation left it, and the oracle not stepped yet.
void StepJudge::judge_step(Pupil& pupil, int64_t index, const training::StepRecord& own,
                           const training::StepRecord& oracle, const training::StepRecord& twin) {
  judge_gradients(pupil, index, own.gradients, oracle.gradients, twin.gradients);
  judge_updates(pupil, index, own);
  pupil.loss.push_back(own.loss);
  pupil.grad_norm.push_back(own.grad_norm.front());
}

Verdict StepJudge::open(const Pupil& pupil, const std::string& tap) const {
  Verdict verdict;
  verdict.subject = pupil.subject;
  verdict.tap = tap;
  verdict.layer = check_layer(tap);
  verdict.mode = Mode::forced;
  return verdict;
}

void StepJudge::judge_gradients(Pupil& pupil, int64_t index, const TensorTable& judged,
                                const TensorTable& oracle, const TensorTable& twin) {
  for (const std::string& name : oracle.names())
    pupil.keep(index, kGradients, gradient_verdict(pupil, name, judged, oracle, twin));
  for (const std::string& name : judged.names()) {
    if (oracle.has(name)) continue;
    Verdict verdict = open(pupil, steps_name("grad", name));
    verdict.measures.push_back({"exact", 1, 0, "docs/spec.md 2: no gradient under this objective"});
    settle(verdict);
    pupil.keep(index, kGradients, std::move(verdict));
  }
}

Verdict StepJudge::gradient_verdict(const Pupil& pupil, const std::string& name,
                                    const TensorTable& judged, const TensorTable& oracle,
                                    const TensorTable& twin) const {
  const HostTensor exact = to_host(oracle.at(name), DType::float64);
  Comparison comparison{.subject = pupil.subject,
                        .config = &job_.the_case.config,
                        .batch = &batch_,
                        .tap = *parse_tap("grad." + name),
                        .mode = Mode::forced,
                        .yardstick = {.oracle = &exact}};
  const HostTensor own = judged.has(name) ? to_host(judged.at(name), DType::float32) : HostTensor();
  const HostTensor noise = twin.has(name) ? to_host(twin.at(name), DType::float32) : HostTensor();
  if (own.defined()) comparison.judged = &own;
  if (noise.defined()) comparison.yardstick.reference = &noise;
  Verdict verdict = own.defined() ? compare_values(comparison)
                                  : unmeasured(comparison, Trust::missing, "no gradient");
  verdict.tap = steps_name("grad", name);
  return verdict;
}

void StepJudge::judge_updates(Pupil& pupil, int64_t index, const training::StepRecord& judged) {
  const training::OptimizerState before = oracle_.optimizer().state();  // not stepped yet
  const AdamWStep step{.lr = group_.adamw.lr,
                       .beta1 = group_.adamw.beta1,
                       .beta2 = group_.adamw.beta2,
                       .eps = group_.adamw.eps,
                       .weight_decay = group_.adamw.weight_decay,
                       .clip_factor = clip_factor(group_, judged.grad_norm.front()),
                       .count = before.at(group_.name + "/step").item<int64_t>()};
  for (const std::string& name : judged_.parameters().names()) {
    const bool moves = judged.gradients.has(name);
    pupil.keep(index, kUpdates,
               moves ? update_verdict(pupil, name, step, judged.gradients.at(name), before)
                     : untouched_verdict(pupil, name));
  }
}

Verdict StepJudge::update_verdict(const Pupil& pupil, const std::string& name,
                                  const AdamWStep& step, const Tensor& gradient,
                                  const training::OptimizerState& before) const {
  const std::string key = group_.name + "/" + name;
  const AdamWTensors tensors{.parameter = values_of<double>(oracle_.parameters().at(name)),
                             .first = moments_of(before, key + "/exp_avg"),
                             .second = moments_of(before, key + "/exp_avg_sq"),
                             .gradient = values_of<float>(gradient),
                             .updated = values_of<float>(judged_.parameters().at(name))};
  Verdict verdict = harness::update_verdict(steps_name("update", name), check_update(step, tensors),
                                            std::ssize(tensors.parameter));
  verdict.subject = pupil.subject;
  return verdict;
}

Verdict StepJudge::untouched_verdict(const Pupil& pupil, const std::string& name) const {
  const auto before = values_of<double>(oracle_.parameters().at(name));
  const auto after = values_of<float>(judged_.parameters().at(name));
  int64_t moved = 0;
  for (size_t i = 0; i < after.size(); ++i) moved += after[i] != static_cast<float>(before[i]);
  Verdict verdict = open(pupil, steps_name("update", name));
  verdict.checked = std::ssize(after);
  verdict.measures.push_back({"exact", static_cast<double>(moved), 0,
                              "docs/spec.md 2: without a gradient it never moves"});
  settle(verdict);
  return verdict;
}

void StepJudge::Pupil::keep(int64_t index, size_t place, Verdict verdict) {
  const std::string tap = verdict.tap;
  const bool bad = verdict.trust != Trust::pass;
  if (bad) failures.push_back({index, place, tap});
  verdict.note += (verdict.note.empty() ? "" : "; ") + std::string(bad ? "bad in" : "worst in") +
                  " step " + std::to_string(index);
  const auto known = worst.find(tap);
  if (known == worst.end()) {
    order.push_back(tap);
    worst[tap] = std::move(verdict);
    return;
  }
  const int64_t checked = known->second.checked + verdict.checked;
  const bool first_bad = bad && known->second.trust == Trust::pass;
  const bool worse = known->second.trust == Trust::pass && verdict.trust == Trust::pass &&
                     verdict.margin() > known->second.margin();
  if (first_bad || worse) known->second = std::move(verdict);
  known->second.checked = checked;
}

Verdict StepJudge::scalar_verdict(const Pupil& pupil, const std::string& tap,
                                  const std::vector<double>& judged, const Scalar& scalar,
                                  std::vector<int64_t>& bad) const {
  std::vector<double> noise;
  for (size_t i = 0; i < scalar.oracle.size(); ++i)
    noise.push_back(relative(scalar.twin[i], scalar.oracle[i]));
  const double unit = std::max(root_mean_square(noise), rounding_floor(DType::float32));
  Verdict verdict = open(pupil, tap);
  verdict.checked = std::ssize(scalar.oracle);
  double largest = 0;
  for (size_t i = 0; i < scalar.oracle.size(); ++i) {
    const double ratio = relative(judged[i], scalar.oracle[i]) / unit;
    if (!by_limit("step.scalar", ratio).within()) bad.push_back(steps_[i]);
    largest = keep_larger(largest, ratio);
  }
  verdict.measures.push_back(by_limit("step.scalar", largest));
  settle(verdict);
  return verdict;
}

Verdict StepJudge::summary(const Pupil& pupil, const std::vector<Place>& failures) const {
  Verdict verdict = open(pupil, steps_name());
  verdict.checked = std::ssize(steps_);
  verdict.measures.push_back(
      {"exact", static_cast<double>(failures.size()), 0, "no tap fails in any step"});
  if (steps_.empty()) verdict.trust = Trust::vacuous;
  if (failures.empty()) return verdict;
  const auto earlier = [](const Place& a, const Place& b) {
    return std::pair(a.step, a.order) < std::pair(b.step, b.order);
  };
  const Place& first = *std::min_element(failures.begin(), failures.end(), earlier);
  verdict.note = "first bad: " + name_in_step(first.step, first.tap);
  settle(verdict);
  return verdict;
}

void StepJudge::add_verdicts(const Pupil& pupil, std::vector<Verdict>& all) const {
  std::vector<Place> failures = pupil.failures;
  std::vector<int64_t> bad_loss, bad_norm;
  Verdict loss = scalar_verdict(pupil, steps_name("loss"), pupil.loss, loss_, bad_loss);
  Verdict norm =
      scalar_verdict(pupil, steps_name("grad_norm"), pupil.grad_norm, grad_norm_, bad_norm);
  for (const int64_t step : bad_loss) failures.push_back({step, kLoss, loss.tap});
  for (const int64_t step : bad_norm) failures.push_back({step, kGradNorm, norm.tap});
  all.push_back(summary(pupil, failures));
  all.push_back(std::move(loss));
  all.push_back(std::move(norm));
  for (const std::string& tap : pupil.order) all.push_back(pupil.worst.at(tap));
}

std::vector<Verdict> StepJudge::verdicts() const {
  std::vector<Verdict> all;
  for (const Pupil& pupil : pupils_) add_verdicts(pupil, all);
  return all;
}

}  // namespace dsv32::harness
