#include <algorithm>
#include <cmath>
#include <set>

#include "harness/judge/adamw.h"
#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/replay.h"
#include "harness/training/sharded/run.h"
#include "harness/training/side.h"
#include "src/bridge/bridge.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "src/training/zero2.h"

namespace dsv32::harness {
namespace {

using training::distance;
using training::Group;
using training::norm_of;
using training::StepRecord;
using training::Tensor;
using training::TensorTable;

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

std::vector<double> doubles(const Tensor& tensor) {
  const Tensor wide = tensor.to(torch::kFloat64).contiguous();
  return {wide.data_ptr<double>(), wide.data_ptr<double>() + wide.numel()};
}

std::span<const float> floats(const Tensor& tensor) {
  return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

/// The moments of a group, in double, from the gradients that the world itself reports.
struct Moments {
  std::map<std::string, std::vector<double>> first, second;
  int64_t count = 0;
};

void add(const AdamWStep& step, std::span<const float> gradient, std::vector<double>& first,
         std::vector<double>& second) {
  first.resize(gradient.size());
  second.resize(gradient.size());
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double g = step.clip_factor * gradient[i];
    first[i] = step.beta1 * first[i] + (1 - step.beta1) * g;
    second[i] = step.beta2 * second[i] + (1 - step.beta2) * g * g;
  }
}

class WorldJudge {
 public:
  WorldJudge(const TrainingJob& job, const ShardedPlan& plan, const ShardedRun& run)
      : job_(job),
        plan_(plan),
        run_(run),
        subject_(sharded_subject(plan)),
        batch_(make_batch(job.the_case)),
        oracle_(plan, "reference", DType::float64),
        reference_(plan, "reference", DType::float32),
        recipe_(sharded_recipe(plan, plan.ranks * plan.accumulation)),
        before_(reference_.trainables->table().clone()),
        moments_(recipe_.groups.size()) {}

  std::vector<Verdict> judge() {
    for (int64_t step = 0; step < plan_.steps; ++step) judge_step(step);
    judge_bytes();
    judge_integers();
    return std::move(verdicts_);
  }

 private:
  /// In the order in which a step goes wrong.
  void judge_step(int64_t step) {
    const StepRecord oracle = measure(oracle_, DType::float64, step);
    const StepRecord reference = measure(reference_, DType::float32, step);
    check(step_name(step, "loss"),
          by_limit("sharded.loss", relative(mean(run_.loss[step]), oracle.loss)), plan_.ranks);
    judge_gradients(step, oracle.gradients, reference.gradients);
    for (size_t group = 0; group < recipe_.groups.size(); ++group) {
      const double norm = judge_norm(step, group);
      judge_updates(step, group, norm);
    }
    judge_untouched(step);
    judge_ranks(step);
    before_ = run_.parameters[step];
  }

  /// The unsharded gradient at the world's own parameters, under the world's own decisions.
  StepRecord measure(ShardedPupil& side, DType dtype, int64_t step) const {
    side.trainables->table().assign(before_);
    const auto unused = training::make_adamw({}, side.trainables->table());
    training::Trainer trainer(
        job_.the_case, recipe_, *side.model, *side.trainables, *unused,
        {.dtype = dtype,
         .device = job_.settings.device,
         .progress = side_progress(job_.the_case, subject_.label, job_.settings)});
    return trainer.measure(step, &run_.decisions[step]);
  }

  Verdict& check(const std::string& name, Measure measure, int64_t checked) {
    return keep(training_check(subject_, name, std::move(measure), checked));
  }

  Verdict& keep(Verdict verdict) {
    verdicts_.push_back(std::move(verdict));
    return verdicts_.back();
  }

  /// One verdict for all weights of a step; the failing ones stand for themselves.
  void judge_gradients(int64_t step, const TensorTable& oracle, const TensorTable& reference) {
    Verdict all = training_check(subject_, step_name(step, "gradients"),
                                 {"exact", 0, 0, "every weight has a gradient, and no other"}, 0);
    const TensorTable& own = run_.gradients[step];
    for (const std::string& name : oracle.names()) {
      if (frozen(name)) continue;
      Verdict verdict = gradient(step, name, own, oracle, reference);
      all.checked += verdict.checked;
      if (verdict.trust == Trust::fail || verdict.trust == Trust::missing) {
        all.trust = Trust::fail;
        keep(std::move(verdict));
      } else if (verdict.margin() > all.margin()) {
        all.measures = verdict.measures;
        all.note = "worst: " + name;
      }
    }
    for (const std::string& name : own.names()) {
      if (oracle.has(name) || !frozen(name)) continue;
      all.measures = {{"exact", 1, 0, "frozen: " + name}};
      settle(all);
    }
    if (all.trust == Trust::fail) {
      all.measures = {{"exact", 1, 0, "see the gradients named above"}};
      settle(all);
    }
    keep(std::move(all));
  }

  Verdict gradient(int64_t step, const std::string& name, const TensorTable& own,
                   const TensorTable& oracle, const TensorTable& reference) const {
    const std::string tap = step_name(step, "grad", name);
    if (!own.has(name)) return training_check(subject_, tap, {"exact", 1, 0, "no gradient"}, 1);
    const auto parsed = parse_tap("grad." + name);
    Verdict verdict = parsed && tap_shape(*parsed, job_.the_case.config, 1, 1)
                          ? by_rows(*parsed, own, oracle, reference, name)
                          : by_tensor(own.at(name), oracle.at(name), reference.at(name));
    // An expert that no rank gave a token has an exactly zero gradient: that is no vacuous check.
    if (verdict.trust == Trust::vacuous) verdict.trust = Trust::pass;
    verdict.tap = tap;
    verdict.layer = weight_layer(name);
    return verdict;
  }

  Verdict by_rows(const TapName& tap, const TensorTable& own, const TensorTable& oracle,
                  const TensorTable& reference, const std::string& name) const {
    const HostTensor exact = to_host(oracle.at(name), DType::float64);
    const HostTensor clean = to_host(reference.at(name), DType::float32);
    const HostTensor judged = to_host(own.at(name), DType::float32);
    return compare_values({.subject = subject_,
                           .config = &job_.the_case.config,
                           .batch = &batch_,
                           .tap = tap,
                           .mode = Mode::forced,
                           .judged = &judged,
                           .yardstick = {.oracle = &exact, .reference = &clean}});
  }

  /// For tensors that are no weights of the model: LoRA's.
  Verdict by_tensor(const Tensor& own, const Tensor& oracle, const Tensor& reference) const {
    const double size = norm_of(oracle);
    if (size == 0)
      return training_check(subject_, "", {"exact", distance(own, oracle), 0, "zero"}, own.numel());
    const double noise =
        std::max(distance(reference, oracle), rounding_floor(DType::float32) * size);
    return training_check(subject_, "", by_limit("sharded.gradient", distance(own, oracle) / noise),
                          own.numel());
  }

  bool frozen(const std::string& name) const {
    return std::none_of(recipe_.groups.begin(), recipe_.groups.end(),
                        [&](const Group& g) { return !g.takes || g.takes(name); });
  }

  /// Every rank's norm against that of the gradient that they share. Returns the true one.
  double judge_norm(int64_t step, size_t group) {
    double squares = 0;
    for (const std::string& name : names_of(step, group))
      squares += std::pow(norm_of(run_.gradients[step].at(name)), 2);
    const double norm = std::sqrt(squares);
    double worst = 0;
    for (const auto& rank : run_.norms[step])
      worst = std::max(worst, relative(rank.at(group), norm));
    check(step_name(step, "grad_norm", suffix(group)), by_limit("sharded.grad_norm", worst),
          plan_.ranks);
    return norm;
  }

  std::vector<std::string> names_of(int64_t step, size_t group) const {
    std::vector<std::string> names;
    const Group& g = recipe_.groups[group];
    for (const std::string& name : run_.gradients[step].names())
      if (!g.takes || g.takes(name)) names.push_back(name);
    return names;
  }

  std::string suffix(size_t group) const {
    return recipe_.groups.size() == 1 ? "" : recipe_.groups[group].name;
  }

  /// Every parameter against AdamW's formula on the world's own gradient.
  void judge_updates(int64_t step, size_t group, double norm) {
    constexpr double kTorchEps = 1e-6;
    const Group& g = recipe_.groups[group];
    const AdamWStep adamw{.lr = g.adamw.lr,
                          .beta1 = g.adamw.beta1,
                          .beta2 = g.adamw.beta2,
                          .eps = g.adamw.eps,
                          .weight_decay = g.adamw.weight_decay,
                          .clip_factor = g.clip ? std::min(1.0, *g.clip / (norm + kTorchEps)) : 1.0,
                          .count = moments_[group].count++};
    UpdateError worst;
    std::string where = "no parameter";
    int64_t checked = 0, failed = 0;
    for (const std::string& name : names_of(step, group)) {
      const UpdateError error = update_error(adamw, step, name, moments_[group]);
      checked += run_.gradients[step].at(name).numel();
      if (!by_limit("step.update", error.roundings).within() && failed++ == 0) {
        worst = error;
        where = name;
      }
      if (failed > 0 || error.roundings <= worst.roundings) continue;
      worst = error;
      where = name;
    }
    Verdict& verdict = check(step_name(step, "updates", suffix(group)),
                             by_limit("step.update", worst.roundings), checked);
    verdict.note =
        (failed > 0 ? std::to_string(failed) + " parameters, first: " : "worst: ") + where;
    verdict.layer = weight_layer(where);
    verdict.worst = Worst{.index = {worst.element}, .expected = worst.expected, .got = worst.got};
  }

  UpdateError update_error(const AdamWStep& adamw, int64_t step, const std::string& name,
                           Moments& moments) const {
    const std::vector<double> parameter = doubles(before_.at(name));
    std::vector<double>&first = moments.first[name], &second = moments.second[name];
    const std::span<const float> gradient = floats(run_.gradients[step].at(name));
    const UpdateError error =
        check_update(adamw, {.parameter = parameter,
                             .first = first,
                             .second = second,
                             .gradient = gradient,
                             .updated = floats(run_.parameters[step].at(name))});
    add(adamw, gradient, first, second);
    return error;
  }

  /// What has no gradient or is frozen keeps its bits.
  void judge_untouched(int64_t step) {
    int64_t moved = 0, checked = 0;
    std::string first;
    for (const std::string& name : before_.names()) {
      if (run_.gradients[step].has(name)) continue;
      ++checked;
      if (torch::equal(run_.parameters[step].at(name), before_.at(name))) continue;
      if (moved++ == 0) first = name;
    }
    if (checked == 0) return;
    check(step_name(step, "untouched"),
          {"exact", static_cast<double>(moved), 0, "without a gradient the bits stay"}, checked)
        .note = first;
  }

  /// Every rank has the same parameters, bit for bit.
  void judge_ranks(int64_t step) {
    const auto& prints = run_.fingerprints[step];
    const auto odd = std::find_if(prints.begin(), prints.end(),
                                  [&](int64_t print) { return print != prints.front(); });
    Verdict& verdict =
        check(step_name(step, "ranks"),
              {"exact", odd == prints.end() ? 0.0 : 1.0, 0, "the same parameters on every rank"},
              plan_.ranks);
    if (odd != prints.end())
      verdict.note = "rank " + std::to_string(odd - prints.begin()) + " has other parameters";
  }

  /// Two moments for 1 / ranks of the elements of each group, counted from the config.
  void judge_bytes() {
    std::vector<int64_t> elements(recipe_.groups.size(), 0);
    for (const std::string& name : before_.names())
      for (size_t group = 0; group < recipe_.groups.size(); ++group)
        if (const Group& g = recipe_.groups[group]; !g.takes || g.takes(name))
          elements[group] += numel(before_.at(name).sizes().vec());
    const int64_t expected = training::zero2_state_bytes(elements, plan_.ranks, sizeof(float));
    double worst = 0;
    for (const int64_t bytes : run_.state_bytes)
      worst = std::max(worst, std::fabs(static_cast<double>(bytes - expected)));
    keep(training_check(subject_, rule_name("optimizer.bytes"),
                        {"exact", worst, 0, "8 bytes for 1 / ranks of the elements, rounded up"},
                        std::ssize(run_.state_bytes)))
        .note = std::to_string(expected) + " bytes per rank";
  }

  /// Integer gradients: the bits of a world of one.
  void judge_integers() {
    training::World alone;
    ShardedPlan plan = plan_;
    plan.bug = training::Bug::none;
    const int64_t expected = integer_fingerprint(alone, plan);
    int64_t odd = 0;
    for (const int64_t print : run_.integer_fingerprints) odd += print != expected;
    keep(training_check(
        subject_, rule_name("optimizer.integers"),
        {"exact", static_cast<double>(odd), 0, "integer gradients: the bits of an unsharded run"},
        plan_.ranks));
  }

  const TrainingJob& job_;
  const ShardedPlan& plan_;
  const ShardedRun& run_;
  const Subject subject_;
  const Batch batch_;
  ShardedPupil oracle_, reference_;
  const training::Recipe recipe_;
  TensorTable before_;
  std::vector<Moments> moments_;
  std::vector<Verdict> verdicts_;
};

}  // namespace

std::vector<Verdict> judge_world(const TrainingJob& job, const ShardedPlan& plan,
                                 const ShardedRun& run) {
  return WorldJudge(job, plan, run).judge();
}

}  // namespace dsv32::harness
