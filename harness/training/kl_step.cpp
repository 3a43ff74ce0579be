#include "harness/training/kl_step.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/judge.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "src/model/check_name.h"
#include "src/training/one_ulp.h"

namespace dsv32::harness {
namespace {

const std::string kGradient = "grad.";

/// The start weights of a job: synthetic, moved by one ulp for a clean run other than the first.
class StartWeights : public WeightSource {
 public:
  StartWeights(const Case& c, uint64_t perturbation_seed)
      : base_(c), moved_(base_, perturbation_seed) {}
  HostTensor load(const WeightSpec& spec) const override { return moved_.load(spec); }
  std::string identity() const override { return moved_.identity(); }

 private:
  SyntheticWeights base_;
  training::OneUlpWeights moved_;
};

/// Another source with the tensors of one kind made larger by a 64th.
class Nudged : public WeightSource {
 public:
  Nudged(const WeightSource& base, std::string ending) : base_(base), ending_(std::move(ending)) {}
  HostTensor load(const WeightSpec& spec) const override {
    const HostTensor value = base_.load(spec);
    if (!spec.name.ends_with(ending_)) return value;
    std::vector<double> values = value.to_doubles();
    for (size_t i = 0; i < values.size(); i += 2) values[i] *= 1 + kNudge;
    return HostTensor::from_doubles(value.dtype(), value.shape(), values);
  }
  std::string identity() const override { return base_.identity() + "+" + ending_; }

 private:
  static constexpr double kNudge = 1.0 / 64;
  const WeightSource& base_;
  std::string ending_;
};

CaseRun case_run(const TrainingJob& job, const Objective& objective, const WeightSource& weights) {
  const bool backward = true;
  return {job.the_case, make_batch(job.the_case), weights, backward, job.settings, objective};
}

bool of_the_objective(const std::string& check) {
  const std::optional<TapName> tap = parse_tap(check);
  return tap && (tap->info.kind == TapKind::gradient || tap->info.name.starts_with("kl.") ||
                 tap->info.name == "loss.kl");
}

/// What the suites forward and backward judge anyway is left out while it passes.
std::vector<Verdict> kept(std::vector<Verdict> verdicts) {
  std::erase_if(verdicts, [](const Verdict& v) {
    const bool quiet = v.trust == Trust::pass || v.trust == Trust::skipped;
    return v.trust == Trust::skipped || (quiet && !of_the_objective(v.tap));
  });
  return verdicts;
}

/// The golden's taps and the decisions they were made under, as one trace.
Trace first_step_of(const golden::TrainingGolden& golden) {
  Trace trace = golden.tensors;
  for (const std::string& name : golden.decisions.at(0).names())
    trace.put(name, *golden.decisions.at(0).find(name));
  return trace;
}

std::vector<Verdict> judge_golden_step(const CaseRun& run, const KlTask& task,
                                       const golden::TrainingGolden& golden) {
  const Trace trace = first_step_of(golden);
  const JudgedTrace judged{.subject = golden_side(kl_note(task)),
                           .dialect = find_dialect(golden.dialect),
                           .trace = &trace,
                           .is_file = true};
  return kept(run.judge_forced(judged));
}

/// Elements other than zero of the gradients whose names end like this, over all layers.
int64_t nonzero_gradients(const Trace& trace, const std::string& ending) {
  int64_t count = 0;
  for (const std::string& name : trace.names()) {
    if (!name.starts_with(kGradient) || !name.ends_with(ending)) continue;
    const HostTensor& value = *trace.find(name);
    for (int64_t i = 0; i < value.numel(); ++i) count += value.at(i) != 0 ? 1 : 0;
  }
  return count;
}

/// Relative L2 distance of two gradients; 1 where one is missing.
double gradient_distance(const HostTensor* a, const HostTensor* b) {
  if (a == nullptr || b == nullptr || a->shape() != b->shape()) return a == b ? 0 : 1;
  return relative(*a, *b);
}

}  // namespace

std::string kl_note(const KlTask& task) { return ", " + task.name; }

std::vector<Verdict> judge_kl_step(const TrainingJob& job, const std::string& impl,
                                   const KlTask& task, const golden::TrainingGolden* golden) {
  const StartWeights weights(job.the_case, job.perturbation_seed);
  const CaseRun run = case_run(job, task.objective, weights);
  const Trace trace =
      run.run({.dialect = job.dialect, .backward = true}, "first step, " + task.name, impl);
  std::vector<Verdict> verdicts = kept(run.judge_subject(
      {.subject = judged_side(impl, kl_note(task)), .impl = impl, .trace = &trace}));
  const bool comparable = golden != nullptr && job.perturbation_seed == 0;
  if (comparable && !golden->tensors.empty())
    append(verdicts, judge_golden_step(run, task, *golden));
  return verdicts;
}

std::vector<Verdict> judge_kl_detachment(const TrainingJob& job, const std::string& impl,
                                         const KlTask& task) {
  struct Input {
    const char* name;
    const char* behind;  // a weight that moves it
  };
  const Input inputs[] = {{"detached.hidden", "input_layernorm.weight"},
                          {"detached.q_latent", "self_attn.q_a_layernorm.weight"},
                          {"detached.target", "self_attn.kv_b_proj.weight"}};
  const StartWeights weights(job.the_case, job.perturbation_seed);
  RunOptions options{.dialect = job.dialect, .backward = true};
  const Trace trace = case_run(job, task.objective, weights).run(options, "detachment", impl);
  options.feeding = Feeding::forced;
  options.feed = &trace;
  options.backward = false;
  std::vector<Verdict> verdicts;
  for (const Input& input : inputs) {
    const Nudged nudged(weights, input.behind);
    const CaseRun moved = case_run(job, task.objective, nudged);
    const double before = trace.find("loss.kl")->at(0);
    const double after = moved.run(options, "detachment", impl).find("loss.kl")->at(0);
    Verdict verdict =
        exact_check(judged_side(impl, kl_note(task)), rule_name(input.name),
                    static_cast<double>(nonzero_gradients(trace, input.behind)),
                    "docs/spec.md 2: x, q_latent and the target are detached for the KL", 1);
    const double moves = std::fabs(after - before) / before;
    verdict.note = std::string(input.behind) + " moves the KL by " + std::to_string(100 * moves) +
                   " % and has no gradient";
    if (verdict.trust == Trust::pass && !(moves > limit_of("kl.depends"))) {
      verdict.trust = Trust::vacuous;
      verdict.note = std::string(input.behind) + " does not move the KL: nothing was proven";
    }
    verdicts.push_back(std::move(verdict));
  }
  return verdicts;
}

std::vector<Verdict> judge_kl_paths(const TrainingJob& job, const std::string& impl,
                                    const KlTask& joint) {
  Objective lm = joint.objective, kl = joint.objective;
  lm.kl = KlStage::none;
  kl.lm = false;
  const StartWeights weights(job.the_case, job.perturbation_seed);
  const RunOptions options{.dialect = job.dialect, .backward = true};
  const auto gradients = [&](const Objective& objective) {
    return case_run(job, objective, weights).run(options, "gradient paths", impl);
  };
  const Trace both = gradients(joint.objective), alone_lm = gradients(lm), alone_kl = gradients(kl);
  Verdict verdict;
  verdict.subject = judged_side(impl, kl_note(joint));
  verdict.tap = rule_name("gradient_paths");
  double worst = 0;
  int64_t identical = 0;
  for (const std::string& name : gradient_taps(job.the_case.config, joint.objective)) {
    const Trace& own = is_indexer(name) ? alone_kl : alone_lm;
    const HostTensor *joined = both.find(name), *expected = own.find(name);
    const double gap = gradient_distance(joined, expected);
    identical += gap == 0 ? 1 : 0;
    ++verdict.checked;
    if (gap <= worst) continue;
    worst = gap;
    verdict.structure = "worst: " + name;
  }
  verdict.measures.push_back(by_limit("kl.gradient_paths", {.dtype = DType::float32}, worst));
  verdict.note = std::to_string(identical) + " of " + std::to_string(verdict.checked) +
                 " gradients are bit for bit those of their own objective";
  settle(verdict);
  return {verdict};
}

}  // namespace dsv32::harness
