// Dual LoRA: adapters on the main model driven by the LM loss, adapters on the indexer driven by
// its KL, in one forward pass with two optimizers; against real peft on real transformers.

#include <algorithm>
#include <cmath>

#include "harness/judge/adamw.h"
#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/lora_checks.h"
#include "harness/training/recipe_text.h"
#include "harness/training/replay.h"
#include "harness/training/step/book.h"
#include "src/bridge/bridge.h"
#include "src/model/check_name.h"
#include "src/training/one_ulp.h"

namespace dsv32::harness {
namespace {

using training::Snapshot;
using training::StepRecord;
using training::Tensor;
using training::TensorTable;

constexpr uint64_t kTwinSeed = 0x7719;  // of the clean float32 twin's base weights
// Twins asked when a gradient is farther from the oracle than the first one. The indexer's ReLU has
// a kink: a product within rounding of 0 lets some correct runs take one side and some the other.
constexpr uint64_t kFurtherTwins = 8;
const char* const kSeries[] = {"loss", "kl", "grad_norm.lm", "grad_norm.kl"};

bool is_lm_parameter(const std::string& name) { return !is_indexer(name); }

bool is_tiny(const Case& c) { return c.config_name == "tiny"; }

template <typename T>
std::span<const T> values_of(const Tensor& tensor) {
  return {tensor.data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}

/// "loss", "kl", "grad_norm.lm", "grad_norm.kl" of one step.
std::vector<double> scalars_of(const StepRecord& record) {
  return {record.loss, record.kl, record.grad_norm.at(0), record.grad_norm.at(1)};
}

/// One step of the float64 run under the golden's decisions, and of a clean float32 twin.
struct OracleStep {
  Snapshot before;
  StepRecord exact;
  TensorTable noisy;  // the twin's gradients; empty where the step is not judged
  double noisy_loss = 0, noisy_kl = 0;
};

struct LoraOracle {
  std::vector<OracleStep> steps;
  ReplayedRun run;
  Snapshot end;
  LoraLogits logits;
};

class Judge {
 public:
  Judge(const TrainingJob& job, LoraPlan plan)
      : job_(job),
        plan_(std::move(plan)),
        golden_(golden::load_training(plan_.golden, job.the_case.name)),
        batch_(make_batch(job.the_case)),
        clean_run_(job.perturbation_seed != 0) {
    set_training_threads(job.the_case, job.settings);
    for (const std::string& name : golden_.tensors.names()) {
      if (!is_decision(name)) continue;
      last_decisions_.put(name, *golden_.tensors.find(name));
      const HostTensor* merged = golden_.tensors.find("merged." + name);
      merged_decisions_.put(name, merged != nullptr ? *merged : *golden_.tensors.find(name));
    }
  }

  TrainingResult run() {
    const std::shared_ptr<const LoraOracle> oracle = oracle_of_case();
    if (!clean_run_) judge_golden(*oracle);
    for (const std::string& impl : job_.impls) judge_side(impl, *oracle);
    return std::move(result_);
  }

 private:
  void judge_side(const std::string& impl, const LoraOracle& oracle) {
    impl_ = impl;
    subject_ = judged_side(impl, plan_.note);
    LoraSide side(job_, plan_,
                  {.name = subject_.label,
                   .impl = impl,
                   .dialect = job_.dialect,
                   .bug = job_.bug,
                   .ulp_seed = job_.perturbation_seed});
    if (!clean_run_) put(judge_lora_scale(job_, plan_, subject_));
    put(judge_lora_start(side, batch_, golden_.decisions.at(0), subject_));
    judge_curve(side, oracle);
    judge_steps(side, oracle);
    judge_end(side, oracle);
  }

  void put(Verdict verdict) { result_.verdicts.push_back(std::move(verdict)); }
  void put(std::vector<Verdict> verdicts) {
    for (Verdict& verdict : verdicts) put(std::move(verdict));
  }
  void figure(const std::string& name, double value) {
    result_.figures.emplace_back(figure_of(name + plan_.note, impl_), value);
  }
  /// Steps of which the oracle keeps what a judgement needs.
  bool kept_step(int64_t step) const {
    constexpr int64_t kFirst = 3, kStride = 4;
    return is_tiny(job_.the_case) || step < kFirst || step % kStride == kStride - 1;
  }
  /// Clean runs are many: a hundred of them look at fewer steps each.
  bool judged_step(int64_t step) const {
    constexpr int64_t kFirst = 2, kStride = 10;
    if (!clean_run_) return kept_step(step);
    return step < kFirst || step % kStride == kStride - 1;
  }
  int64_t curve_steps() const {
    constexpr uint64_t kWhole = 10;
    const bool whole = !clean_run_ || job_.perturbation_seed % kWhole == 0;
    return whole ? plan_.steps : plan_.steps / 2;
  }

  // --- the oracle -------------------------------------------------------------------------------

  /// Of a tiny case it is kept, because clean runs ask for it over and over.
  std::shared_ptr<const LoraOracle> oracle_of_case() const {
    static std::map<std::string, std::shared_ptr<const LoraOracle>> kept;
    const std::string key = golden_.name;
    if (kept.count(key) != 0) return kept.at(key);
    auto oracle = std::make_shared<const LoraOracle>(follow_oracle());
    if (is_tiny(job_.the_case)) kept[key] = oracle;
    return oracle;
  }

  LoraOracle follow_oracle() const {
    LoraSide side(job_, plan_, {.name = "oracle", .dtype = DType::float64});
    LoraSide twin(job_, plan_, {.name = "twin", .ulp_seed = kTwinSeed});
    LoraOracle oracle;
    oracle.run.start = side.parameters().clone();
    for (int64_t t = 0; t < plan_.steps; ++t) {
      const Trace* decisions = &golden_.decisions.at(t);
      OracleStep step{.before = training::take_snapshot(side.adapters(), side.optimizer())};
      if (kept_step(t)) measure_twin(twin, t, decisions, step);
      step.exact = side.trainer().step(t, decisions);
      oracle.run.loss.push_back(step.exact.loss);
      oracle.steps.push_back(std::move(step));
    }
    oracle.end = training::take_snapshot(side.adapters(), side.optimizer());
    oracle.run.end = oracle.end.parameters;
    oracle.logits = lora_logits(side, batch_, last_decisions_, merged_decisions_);
    return oracle;
  }

  static void measure_twin(LoraSide& twin, int64_t index, const Trace* decisions,
                           OracleStep& step) {
    twin.set_to(step.before);
    const StepRecord record = twin.trainer().measure(index, decisions);
    step.noisy = record.gradients;
    step.noisy_loss = record.loss;
    step.noisy_kl = record.kl;
  }

  // --- the golden -------------------------------------------------------------------------------

  void judge_golden(const LoraOracle& oracle) {
    const Subject subject = golden_side(plan_.note);
    judge_recipe(subject);
    judge_names(subject, oracle);
    std::vector<std::vector<double>> series;
    for (const char* name : kSeries) series.push_back(golden_.series.at(name));
    put_series(subject, series, oracle);
    for (const std::string& name : golden_.tensors.names())
      if (name.starts_with("grad.")) judge_golden_gradient(subject, name, oracle);
    for (Verdict& verdict : judge_golden_parameters(golden_, oracle.run)) {
      verdict.subject = subject;
      put(std::move(verdict));
    }
    const LoraLogits logits{.adapter = *golden_.tensors.find("logits.adapter"),
                            .merged = *golden_.tensors.find("logits.merged")};
    put(judge_lora_logits(job_.the_case, logits, oracle.logits, subject));
  }

  /// The golden was trained as this suite trains.
  void judge_recipe(const Subject& subject) {
    const std::string expected = recipe_text(lora_recipe(plan_));
    const std::string& got = golden_.attributes.at("recipe");
    Verdict verdict = training_check(subject, rule_name("recipe"),
                                     {"exact", got == expected ? 0.0 : 1.0, 0, "one recipe"});
    verdict.mode = Mode::exact;
    if (got != expected) verdict.note = "expected " + expected + ", got " + got;
    put(std::move(verdict));
  }

  void judge_names(const Subject& subject, const LoraOracle& oracle) {
    const bool equal = golden_.parameter_names == oracle.run.start.names();
    Verdict verdict =
        training_check(subject, rule_name("parameters.adapted"),
                       {"exact", equal ? 0.0 : 1.0, 0, "docs/spec.md 2: which have adapters"},
                       std::ssize(golden_.parameter_names));
    verdict.mode = Mode::exact;
    put(std::move(verdict));
  }

  void judge_golden_gradient(const Subject& subject, const std::string& tap,
                             const LoraOracle& oracle) {
    const Tensor exact = oracle.steps.front().exact.gradients.at(tap.substr(5));
    const Tensor own = to_torch(*golden_.tensors.find(tap));
    const double gap = training::distance(own, exact) / training::norm_of(exact);
    put(training_check(subject, tap,
                       by_limit("golden.relative", {.config = job_.the_case.config_name}, gap),
                       exact.numel()));
  }

  Measure series_limit(const std::string& name, double gap) const {
    const bool norm = name.starts_with("grad_norm"), kl = name.ends_with("kl");
    const Where where{.config = job_.the_case.config_name};
    if (kl) return by_limit(norm ? "lora.kl_grad_norm" : "lora.kl", where, gap);
    return by_limit(norm ? "lora.grad_norm" : "lora.loss", where, gap);
  }

  /// Losses and norms over all steps; series in the order of kSeries.
  void put_series(const Subject& subject, const std::vector<std::vector<double>>& series,
                  const LoraOracle& oracle) {
    for (size_t i = 0; i < series.size(); ++i) {
      double largest = 0;
      int64_t worst = 0;
      for (int64_t t = 0; t < std::ssize(series[i]); ++t) {
        const double gap = relative(series[i].at(t), scalars_of(oracle.steps[t].exact)[i]);
        if (!(gap <= largest)) largest = gap, worst = t;
      }
      const std::string name = kSeries[i];
      Verdict verdict = training_check(subject, curve_name(name), series_limit(name, largest),
                                       std::ssize(series[i]));
      verdict.note = "worst in step " + std::to_string(worst);
      put(std::move(verdict));
    }
  }

  // --- the judged side --------------------------------------------------------------------------

  /// The whole training, not re-synchronised, under the golden's decisions.
  void judge_curve(LoraSide& side, const LoraOracle& oracle) {
    std::vector<std::vector<double>> series(std::size(kSeries));
    for (int64_t t = 0; t < curve_steps(); ++t) {
      const StepRecord record = side.trainer().step(t, &golden_.decisions.at(t));
      const std::vector<double> scalars = scalars_of(record);
      for (size_t i = 0; i < scalars.size(); ++i) series[i].push_back(scalars[i]);
    }
    ReplayedRun run;
    run.end = side.parameters().clone();
    put_series(subject_, series, oracle);
    if (curve_steps() == plan_.steps) {
      put(judge_parameters(subject_, run, oracle.run, is_lm_parameter));
      for (Verdict& verdict : judge_parameters(subject_, run, oracle.run, is_indexer)) {
        judge_by("lora.kl_parameter", {.config = job_.the_case.config_name}, verdict);
        put(std::move(verdict));
      }
    }
    for (size_t i = 0; i < 2; ++i) {
      figure(std::string("first ") + kSeries[i], series[i].front());
      figure(std::string("last ") + kSeries[i], series[i].back());
    }
    result_.tokens += static_cast<double>(curve_steps() * job_.the_case.B * job_.the_case.S);
  }

  /// Every step from the oracle's state: the first bad one is the origin.
  void judge_steps(LoraSide& side, const LoraOracle& oracle) {
    StepBook book;
    for (int64_t t = 0; t < plan_.steps; ++t) {
      if (!judged_step(t)) continue;
      const OracleStep& step = oracle.steps[t];
      side.set_to(step.before);
      StepRecord own = side.trainer().measure(t, &golden_.decisions.at(t));
      side.trainer().apply(own);
      book.keep(t, scalar_verdict(steps_name("loss"), own.loss, step.exact.loss, step.noisy_loss));
      book.keep(t, scalar_verdict(steps_name("kl"), own.kl, step.exact.kl, step.noisy_kl));
      for (Verdict& verdict : gradient_verdicts(t, side, own.gradients, step))
        book.keep(t, std::move(verdict));
      for (const std::string& name : side.parameters().names())
        book.keep(t, update_verdict(name, side, own.gradients, step));
    }
    put(book.verdicts(subject_));
  }

  Verdict open(const std::string& tap) const {
    Verdict verdict;
    verdict.subject = subject_;
    verdict.tap = tap;
    verdict.layer = check_layer(tap);
    verdict.mode = Mode::forced;
    return verdict;
  }

  Verdict scalar_verdict(const std::string& tap, double own, double exact, double noisy) const {
    const double unit = std::max(relative(noisy, exact), rounding_floor(DType::float32));
    Verdict verdict = open(tap);
    verdict.checked = 1;
    verdict.measures.push_back(by_limit("lora.scalar", relative(own, exact) / unit));
    settle(verdict);
    return verdict;
  }

  std::vector<Verdict> gradient_verdicts(int64_t t, LoraSide& side, const TensorTable& own,
                                         const OracleStep& step) const {
    std::vector<Verdict> verdicts;
    for (const std::string& name : side.parameters().names())
      if (t > 0 || !name.ends_with(".lora_A.weight"))  // zero with B: checked exactly
        verdicts.push_back(gradient_verdict(name, own, step, step.noisy));
    for (uint64_t i = 1; i <= kFurtherTwins; ++i) {
      const auto failed = [&](const Verdict& v) {
        return v.trust == Trust::fail && own.has(parameter_of(v));
      };
      if (std::none_of(verdicts.begin(), verdicts.end(), failed)) break;
      const TensorTable noisy = further_twin(kTwinSeed + i, t, step);
      for (Verdict& verdict : verdicts) {
        if (!failed(verdict)) continue;
        Verdict again = gradient_verdict(parameter_of(verdict), own, step, noisy);
        if (again.trust != Trust::pass) continue;
        verdict = std::move(again);
        verdict.note = "as far from the oracle as clean twin " + std::to_string(i);
      }
    }
    return verdicts;
  }

  static std::string parameter_of(const Verdict& gradient) { return check_of(gradient.tap).of; }

  /// The gradients of one more clean float32 run of this step.
  TensorTable further_twin(uint64_t seed, int64_t t, const OracleStep& step) const {
    LoraSide twin(job_, plan_, {.name = "further twin", .ulp_seed = seed});
    twin.set_to(step.before);
    return twin.trainer().measure(t, &golden_.decisions.at(t)).gradients;
  }

  Verdict gradient_verdict(const std::string& name, const TensorTable& own, const OracleStep& step,
                           const TensorTable& clean) const {
    const HostTensor exact = to_host(step.exact.gradients.at(name), DType::float64);
    const HostTensor noisy = to_host(clean.at(name), DType::float32);
    Comparison comparison{.subject = subject_,
                          .config = &job_.the_case.config,
                          .batch = &batch_,
                          .tap = *parse_tap("grad." + name),
                          .mode = Mode::forced,
                          .yardstick = {.oracle = &exact, .reference = &noisy}};
    HostTensor judged;
    if (own.has(name)) judged = to_host(own.at(name), DType::float32);
    if (judged.defined()) comparison.judged = &judged;
    Verdict verdict = judged.defined() ? compare_values(comparison)
                                       : unmeasured(comparison, Trust::fail, "no gradient");
    if (!judged.defined())
      verdict.measures.push_back({"exact", 1, 0, "docs/spec.md 2: its loss drives it"});
    verdict.tap = steps_name("grad", name);
    return verdict;
  }

  /// Against AdamW's formula on the judged side's own gradient, from the oracle's state.
  Verdict update_verdict(const std::string& name, LoraSide& side, const TensorTable& own,
                         const OracleStep& step) const {
    Verdict verdict = open(steps_name("update", name));
    if (!own.has(name)) {
      verdict.measures.push_back({"exact", 1, 0, "docs/spec.md 2: every adapter is stepped"});
      settle(verdict);
      return verdict;
    }
    const std::string group = is_indexer(name) ? "kl" : "lm";
    const training::Group& rule = lora_recipe(plan_).groups.at(group == "kl" ? 1 : 0);
    const training::OptimizerState& state = step.before.optimizer;
    const AdamWStep formula{.lr = rule.adamw.lr,
                            .beta1 = rule.adamw.beta1,
                            .beta2 = rule.adamw.beta2,
                            .eps = rule.adamw.eps,
                            .weight_decay = rule.adamw.weight_decay,
                            .count = state.at(group + "/step").item<int64_t>()};
    const std::string key = group + "/" + name;
    const AdamWTensors tensors{.parameter = values_of<double>(step.before.parameters.at(name)),
                               .first = moments_of(state, key + "/exp_avg"),
                               .second = moments_of(state, key + "/exp_avg_sq"),
                               .gradient = values_of<float>(own.at(name)),
                               .updated = values_of<float>(side.parameters().at(name))};
    const UpdateError error = check_update(formula, tensors);
    verdict.checked = std::ssize(tensors.parameter);
    verdict.measures.push_back(by_limit("step.update", error.roundings));
    if (error.element >= 0)
      verdict.worst = Worst{.index = {error.element}, .expected = error.expected, .got = error.got};
    settle(verdict);
    return verdict;
  }

  static std::span<const double> moments_of(const training::OptimizerState& state,
                                            const std::string& key) {
    return state.has(key) ? values_of<double>(state.at(key)) : std::span<const double>();
  }

  /// From the oracle's last adapters: merging, and the frozen base.
  void judge_end(LoraSide& side, const LoraOracle& oracle) {
    side.set_to(oracle.end);
    const LoraLogits logits = lora_logits(side, batch_, last_decisions_, merged_decisions_);
    put(judge_lora_logits(job_.the_case, logits, oracle.logits, subject_));
    const SyntheticWeights synthetic(job_.the_case);
    const training::OneUlpWeights start(synthetic, job_.perturbation_seed);
    put(judge_lora_base(side, job_.the_case, start, subject_));
  }

  TrainingJob job_;
  LoraPlan plan_;
  golden::TrainingGolden golden_;
  std::string impl_;  // the judged one
  Subject subject_;
  Batch batch_;
  bool clean_run_;
  Trace last_decisions_, merged_decisions_;  // of the golden's last two forward passes
  TrainingResult result_;
};

}  // namespace

TrainingResult judge_dual_lora(const TrainingJob& job) {
  const LoraPlan plan{.golden = "dual_lora", .steps = is_tiny(job.the_case) ? 20 : 10};
  TrainingResult result = Judge(job, plan).run();
  const LoraPlan experts{.golden = "dual_lora_experts",
                         .targets = {.experts = true},
                         .steps = 5,
                         .note = ", routed experts"};
  const bool clean_run = job.perturbation_seed != 0;
  if (!clean_run && lists_golden(experts.golden, job.the_case.name))
    result += Judge(job, experts).run();
  return result;
}

}  // namespace dsv32::harness
