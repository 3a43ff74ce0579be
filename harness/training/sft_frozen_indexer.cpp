// SFT with a frozen indexer: the LM loss alone, AdamW with lr 1e-4, everything moves but the
// indexer.

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>

#include "harness/judge/compare.h"
#include "harness/judge/limits.h"
#include "harness/training/masking.h"
#include "harness/training/replay.h"
#include "harness/training/suite.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

using training::Bug;

constexpr int64_t kSteps = 20;

bool frozen(const std::string& name) { return is_indexer(name); }
bool moves(const std::string& name) { return !is_indexer(name) && !is_buffer(name); }

/// The recipe of the golden (docs/formats.md 10).
training::Recipe recipe_for(Bug bug) {
  training::Group group{.name = "all", .adamw = {.lr = 1e-4}, .clip = 1.0, .takes = moves};
  if (bug == Bug::indexer_tensor_trainable) group.takes = {};
  return {.name = "sft_frozen_indexer", .groups = {group}, .steps = kSteps};
}

int64_t different_bits(const training::Tensor& a, const training::Tensor& b) {
  return a.view(torch::kInt32).ne(b.view(torch::kInt32)).sum().item<int64_t>();
}

int64_t nonzero_elements(const HostTensor& value) {
  int64_t count = 0;
  for (int64_t i = 0; i < value.numel(); ++i) count += value.at(i) == 0 ? 0 : 1;
  return count;
}

class Suite {
 public:
  explicit Suite(const TrainingJob& job)
      : job_(job), golden_(golden::load_training("sft_frozen_indexer", job.the_case.name)) {
    set_training_threads(job.the_case, job.settings);
  }

  TrainingResult run() {
    const std::shared_ptr<const ReplayedRun> oracle = oracle_of_case();
    const bool clean_run = job_.perturbation_seed != 0;  // says nothing new about the golden
    if (!clean_run) judge_golden(*oracle);
    for (const std::string& impl : job_.impls) judge_side(impl, *oracle);
    return std::move(result_);
  }

 private:
  const std::string& config() const { return job_.the_case.config_name; }
  void put(Verdict verdict) { result_.verdicts.push_back(std::move(verdict)); }
  void put(std::vector<Verdict> verdicts) {
    for (Verdict& verdict : verdicts) put(std::move(verdict));
  }

  /// The float64 run under the golden's decisions; of a tiny case it is kept, because clean runs
  /// ask for it over and over.
  std::shared_ptr<const ReplayedRun> oracle_of_case() const {
    static std::map<std::string, std::shared_ptr<const ReplayedRun>> kept;
    const std::string& name = job_.the_case.name;
    if (kept.count(name) != 0) return kept.at(name);
    const training::Recipe recipe = recipe_for(Bug::none);
    TrainingSide side(job_, recipe, {.name = "oracle", .dtype = DType::float64});
    auto run =
        std::make_shared<const ReplayedRun>(replay_run(side, recipe, golden_.decisions, frozen));
    if (job_.the_case.config_name == "tiny") kept[name] = run;
    return run;
  }

  void judge_golden(const ReplayedRun& oracle) {
    put(judge_frozen_names(oracle));
    put(judge_curve(config(), golden_side(), golden_.series.at("loss"),
                    golden_.series.at("grad_norm"), oracle));
    put(judge_golden_parameters(golden_, oracle));
  }

  /// What the golden's optimizer moved: everything but the indexer.
  Verdict judge_frozen_names(const ReplayedRun& oracle) const {
    int64_t wrong = 0;
    std::string first;
    const auto& names = golden_.parameter_names;
    for (const std::string& name : oracle.end.names()) {
      const bool there = std::find(names.begin(), names.end(), name) != names.end();
      if (there == moves(name)) continue;
      if (wrong++ == 0) first = name;
    }
    return exact_check(golden_side(), rule_name("parameters.trainable"), static_cast<double>(wrong),
                       "docs/spec.md 2: everything but the indexer", std::ssize(oracle.end.names()),
                       first);
  }

  void judge_side(const std::string& impl, const ReplayedRun& oracle) {
    const Subject subject = judged_side(impl);
    const training::Recipe recipe = recipe_for(job_.bug);
    TrainingSide side(job_, recipe,
                      {.name = subject.label,
                       .impl = impl,
                       .dialect = job_.dialect,
                       .bug = job_.bug,
                       .ulp_seed = job_.perturbation_seed});
    const RunOptions options{
        .dialect = job_.dialect,
        .device = job_.settings.device,
        .progress = side_progress(job_.the_case, subject.label, job_.settings)};
    put(judge_masking(job_, side.model(), options, subject));
    judge_unfrozen_gradient(side, options, subject);
    const ReplayedRun run = replay_run(side, recipe, golden_.decisions, frozen);
    result_.tokens += static_cast<double>(kSteps * job_.the_case.B * job_.the_case.S);
    judge_strays(run, subject);
    put(judge_curve(config(), subject, run.loss, run.grad_norm, oracle));
    judge_frozen(run, subject);
    put(judge_parameters(subject, run, oracle, moves));
    judge_movement(run, subject);
    judge_fall(run, impl);
  }

  /// The indexer not frozen: with its KL in the objective at weight 0 every indexer tensor gets a
  /// gradient, and LM alone must make it exactly zero. At weight 1 it must not be zero, or nothing
  /// was shown.
  void judge_unfrozen_gradient(const TrainingSide& side, RunOptions options,
                               const Subject& subject) {
    options.backward = true;
    options.wanted = [](const std::string& tap) { return tap.rfind("grad.", 0) == 0; };
    const Batch batch = make_batch(job_.the_case);
    options.objective = {.lm = true, .kl = KlStage::sparse, .kl_weight = 0};
    const Trace zero = side.model().run(batch, options);
    options.objective = {.lm = false, .kl = KlStage::sparse, .kl_weight = 1};
    const Trace alive = side.model().run(batch, options);
    for (const WeightSpec& spec : weight_specs(job_.the_case.config)) {
      if (is_indexer(spec.name)) put(unfrozen_verdict(spec, zero, alive, subject));
    }
  }

  static Verdict unfrozen_verdict(const WeightSpec& spec, const Trace& zero, const Trace& alive,
                                  const Subject& subject) {
    const std::string tap = "grad." + spec.name;
    const HostTensor* gradient = zero.find(tap);
    const HostTensor* possible = alive.find(tap);
    const bool there = gradient != nullptr && possible != nullptr;
    Verdict verdict = exact_check(
        subject, rule_name("unfrozen.grad", spec.name),
        there ? static_cast<double>(nonzero_elements(*gradient)) : 0,
        "docs/spec.md 2: the gradient of the indexer is exactly zero under LM", numel(spec.shape));
    verdict.layer = weight_layer(spec.name);
    const bool vacuous =
        verdict.trust == Trust::pass && (!there || nonzero_elements(*possible) == 0);
    if (vacuous) {
      verdict.trust = Trust::vacuous;
      verdict.note = there ? "its KL gives no gradient either" : "it has no gradient to look at";
    }
    return verdict;
  }

  /// Frozen means no gradient entry at all, in any step.
  void judge_strays(const ReplayedRun& run, const Subject& subject) {
    for (const std::string& name : run.start.names()) {
      if (!frozen(name)) continue;
      const auto stray = run.stray_gradients.find(name);
      const bool there = stray != run.stray_gradients.end();
      Verdict verdict =
          exact_check(subject, rule_name("frozen.grad", name), there ? 1 : 0,
                      "docs/spec.md 2: under LM the indexer has no gradient", kSteps,
                      there ? "has a gradient from step " + std::to_string(stray->second) : "");
      verdict.layer = weight_layer(name);
      put(std::move(verdict));
    }
  }

  void judge_frozen(const ReplayedRun& run, const Subject& subject) {
    for (const std::string& name : run.start.names()) {
      if (!frozen(name)) continue;
      const int64_t changed = different_bits(run.end.at(name), run.start.at(name));
      Verdict verdict = exact_check(subject, end_name("param", name), static_cast<double>(changed),
                                    "docs/spec.md 2: the optimizer never touches the indexer",
                                    run.start.at(name).numel());
      verdict.layer = weight_layer(name);
      put(std::move(verdict));
    }
  }

  void judge_movement(const ReplayedRun& run, const Subject& subject) {
    int64_t still = 0, checked = 0;
    std::string first;
    for (const std::string& name : run.start.names()) {
      if (!moves(name)) continue;
      ++checked;
      if (different_bits(run.end.at(name), run.start.at(name)) > 0) continue;
      if (still++ == 0) first = name;
    }
    put(exact_check(subject, rule_name("parameters.moved"), static_cast<double>(still),
                    "docs/spec.md 2: under LM every parameter outside the indexer has a gradient",
                    checked, still == 0 ? "" : "first that did not: " + first));
  }

  /// A loss that does not fall shows no training: the curve would be no witness.
  void judge_fall(const ReplayedRun& run, const std::string& impl) {
    const auto mean = [](auto begin) {
      return std::accumulate(begin, begin + kBatches, 0.0) / kBatches;
    };
    const double before = mean(run.loss.begin()), after = mean(run.loss.end() - kBatches);
    result_.figures.emplace_back(figure_of("loss of the first cycle", impl), before);
    result_.figures.emplace_back(figure_of("loss of the last cycle", impl), after);
    Verdict verdict = training_check(judged_side(impl), curve_name("loss.falls"),
                                     by_limit("sft.fall", after / before), kSteps);
    if (verdict.trust == Trust::fail) verdict.trust = Trust::vacuous;
    verdict.note = "mean over the batches of the first and of the last cycle";
    put(std::move(verdict));
  }

  const TrainingJob& job_;
  golden::TrainingGolden golden_;
  TrainingResult result_;
};

}  // namespace

TrainingResult judge_sft_frozen_indexer(const TrainingJob& job) { return Suite(job).run(); }

}  // namespace dsv32::harness
