#include "harness/training/kl_training.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/replay.h"
#include "harness/training/side.h"
#include "harness/training/step/judge.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

training::Recipe recipe_of(const KlTask& task) {
  training::Group group{.name = task.objective.lm ? "all" : "indexer"};
  if (!task.objective.lm) group.takes = [](const std::string& name) { return is_indexer(name); };
  return {.name = "indexer_kl_" + task.name,
          .objective = task.objective,
          .groups = {group},
          .steps = task.steps};
}

SideOptions side_options(const TrainingJob& job, const KlTask& task, const std::string& impl) {
  return {.name = judged_side(impl, kl_note(task)).label,
          .impl = impl,
          .dialect = job.dialect,
          .bug = job.bug,
          .ulp_seed = job.perturbation_seed};
}

/// Over the batches of the training, by dense attention with the weights in force.
Recall recall_of_side(const TrainingJob& job, const TrainingSide& side) {
  Recall mean;
  RunOptions options;
  options.objective = {.lm = false, .kl = KlStage::warmup};
  options.device = job.settings.device;
  options.wanted = [](const std::string& name) {
    return name.ends_with(".topk") || name.ends_with(".kl.target");
  };
  for (int64_t b = 0; b < kBatches; ++b) {
    const Batch batch = make_batch(job.the_case, b);
    const Recall one = recall_of(job.the_case.config, batch, side.model().run(batch, options));
    mean.keys += one.keys / kBatches;
    mean.mass += one.mass / kBatches;
  }
  return mean;
}

/// One side's whole training.
struct KlRun {
  ReplayedRun replayed;  // loss: of the LM part
  std::vector<double> kl;
  std::vector<Trace> decisions;
};

/// `decisions` of every step; nullptr: the side's own.
KlRun train(TrainingSide& side, const KlTask& task, const std::vector<Trace>* decisions) {
  KlRun run;
  run.replayed.start = side.parameters().clone();
  for (int64_t t = 0; t < task.steps; ++t) {
    training::StepRecord record = side.step(t, decisions == nullptr ? nullptr : &decisions->at(t));
    run.replayed.loss.push_back(record.loss);
    run.replayed.grad_norm.push_back(record.grad_norm.front());
    run.kl.push_back(record.kl);
    run.decisions.push_back(std::move(record.decisions));
  }
  run.replayed.end = side.parameters().clone();
  return run;
}

/// Two curves step by step.
Verdict judge_series(const std::string& config, const Subject& subject, const std::string& name,
                     const std::vector<double>& judged, const std::vector<double>& oracle) {
  double worst = 0;
  int64_t at = -1, first = -1;
  for (int64_t t = 0; t < std::ssize(oracle); ++t) {
    const double gap = relative(judged.at(t), oracle[t]);
    if (first < 0 && !by_limit("kl.curve", {.config = config}, gap).within()) first = t;
    if (gap <= worst || std::isnan(worst)) continue;
    worst = gap;
    at = t;
  }
  Verdict verdict = training_check(subject, name, by_limit("kl.curve", {.config = config}, worst),
                                   std::ssize(oracle));
  if (at >= 0) {
    verdict.worst = Worst{{at}, at, oracle[at], judged[at]};
    verdict.note = "worst at step " + std::to_string(at);
  }
  if (first >= 0) verdict.note = "first at step " + std::to_string(first) + ", " + verdict.note;
  return verdict;
}

/// Mean of the first or last cycle through the batches: the same data at both ends.
double cycle_mean(const std::vector<double>& curve, bool last) {
  const int64_t count = std::min<int64_t>(kBatches, std::ssize(curve));
  const int64_t whole = std::ssize(curve) / count * count;
  const auto begin = last ? curve.begin() + (whole - count) : curve.begin();
  return std::accumulate(begin, begin + count, 0.0) / static_cast<double>(count);
}

class Training {
 public:
  Training(const TrainingJob& job, const KlTask& task, const golden::TrainingGolden* golden,
           TrainingResult& result)
      : job_(job), task_(task), golden_(golden), result_(result) {
    set_training_threads(job.the_case, job.settings);
  }

  void run() {
    const std::shared_ptr<const KlRun> oracle = oracle_run();
    const bool comparable = task_.whole && job_.perturbation_seed == 0;
    if (golden_ != nullptr && comparable) judge_golden(*oracle);
    for (const std::string& impl : job_.impls) judge_side(impl, *oracle);
    if (task_.whole) judge_steps(*oracle);
  }

 private:
  void judge_side(const std::string& impl, const KlRun& oracle) {
    impl_ = impl;
    TrainingSide side(job_, recipe_of(task_), side_options(job_, task_, impl));
    const Recall before = task_.whole ? recall_of_side(job_, side) : Recall{};
    const KlRun judged = train(side, task_, &oracle.decisions);
    result_.tokens += static_cast<double>(task_.steps * job_.the_case.B * job_.the_case.S);
    judge_curves(subject(), judged.kl, judged.replayed.loss, oracle);
    put_parameters(subject(),
                   judge_parameters(subject(), judged.replayed, oracle.replayed, mover()));
    judge_movement(judged.replayed);
    if (!task_.whole) return;
    judge_fall(judged.kl);
    judge_recall(before, recall_of_side(job_, side));
  }

  Subject subject() const { return judged_side(impl_, kl_note(task_)); }
  void put(Verdict verdict) { result_.verdicts.push_back(std::move(verdict)); }
  void put(std::vector<Verdict> verdicts) {
    for (Verdict& verdict : verdicts) put(std::move(verdict));
  }
  void figure(const std::string& name, double value) {
    result_.figures.emplace_back(figure_of(task_.name + ": " + name, impl_), value);
  }
  /// What the objective moves.
  std::function<bool(const std::string&)> mover() const {
    return [all = task_.objective.lm](const std::string& name) { return all || is_indexer(name); };
  }

  /// The float64 run under the golden's decisions, its own without one. Of a tiny case it is kept,
  /// because clean runs ask for it over and over.
  std::shared_ptr<const KlRun> oracle_run() const {
    static std::map<std::string, std::shared_ptr<const KlRun>> kept;
    const std::string name =
        task_.name + " " + job_.the_case.name + " " + std::to_string(task_.steps);
    if (kept.count(name) != 0) return kept.at(name);
    TrainingSide side(job_, recipe_of(task_),
                      {.name = "oracle, " + task_.name, .dtype = DType::float64});
    const auto* decisions = golden_ == nullptr ? nullptr : &golden_->decisions;
    auto run = std::make_shared<const KlRun>(train(side, task_, decisions));
    if (job_.the_case.config_name == "tiny") kept[name] = run;
    return run;
  }

  void judge_golden(const KlRun& oracle) {
    const Subject subject = golden_side(kl_note(task_));
    const auto& series = golden_->series;
    judge_curves(subject, series.at("kl"),
                 task_.objective.lm ? series.at("loss") : std::vector<double>{}, oracle);
    put_parameters(subject, judge_golden_parameters(*golden_, oracle.replayed));
  }

  /// Under the limit of this suite: its learning rate is ten times that of the other one.
  void put_parameters(const Subject& subject, std::vector<Verdict> verdicts) {
    for (Verdict& verdict : verdicts) {
      verdict.subject = subject;
      judge_by("kl.parameter", {.config = job_.the_case.config_name}, verdict);
      put(std::move(verdict));
    }
  }

  /// Each step from the oracle's state: of a tiny case the first and the last cycle through the
  /// batches, of a larger one the first two steps (the second one knows the moments).
  void judge_steps(const KlRun& oracle) {
    const bool tiny = job_.the_case.config_name == "tiny";
    const int64_t first = tiny ? kBatches : 2, last = tiny ? task_.steps - kBatches : task_.steps;
    StepJudge steps(job_, recipe_of(task_), kl_note(task_) + ", step by step");
    for (int64_t t = 0; t < (tiny ? task_.steps : first); ++t)
      steps.step(t, &oracle.decisions.at(t), t < first || t >= last);
    put(steps.verdicts());
  }

  void judge_curves(const Subject& subject, const std::vector<double>& kl,
                    const std::vector<double>& loss, const KlRun& oracle) {
    const std::string& config = job_.the_case.config_name;
    put(judge_series(config, subject, curve_name("kl"), kl, oracle.kl));
    if (task_.objective.lm)
      put(judge_series(config, subject, curve_name("loss"), loss, oracle.replayed.loss));
  }

  void judge_fall(const std::vector<double>& kl) {
    const double before = cycle_mean(kl, false), after = cycle_mean(kl, true);
    figure("KL before", before);
    figure("KL after", after);
    Verdict verdict = training_check(subject(), curve_name("kl.falls"),
                                     by_limit("kl.fall", after / before), task_.steps);
    verdict.note = "mean over the batches, last cycle through them over the first";
    put(std::move(verdict));
  }

  void judge_recall(const Recall& before, const Recall& after) {
    figure("recall of the true top-k before", before.keys);
    figure("recall of the true top-k after", after.keys);
    figure("attention mass selected before", before.mass);
    figure("attention mass selected after", after.mass);
    Verdict verdict = training_check(subject(), curve_name("recall"),
                                     by_limit("kl.recall", before.keys / after.keys), task_.steps);
    verdict.note = "share of the keys of largest dense attention mass that the indexer selects";
    put(std::move(verdict));
  }

  /// Under the KL alone everything but the indexer keeps its bits; what the objective trains moves.
  void judge_movement(const ReplayedRun& run) {
    int64_t wrong = 0, checked = 0;
    std::string first;
    for (const std::string& name : run.start.names()) {
      const bool moves = mover()(name);
      const bool moved = !torch::equal(run.end.at(name), run.start.at(name));
      ++checked;
      if (moved == moves) continue;
      if (wrong++ == 0) first = name + (moved ? " moved" : " did not move");
    }
    Verdict verdict =
        training_check(subject(), rule_name("parameters.moved"),
                       {"exact", static_cast<double>(wrong), 0,
                        "docs/spec.md 2: the KL moves the indexer alone, LM all the rest"},
                       checked);
    verdict.mode = Mode::exact;
    verdict.note = first;
    put(std::move(verdict));
  }

  const TrainingJob& job_;
  const KlTask& task_;
  const golden::TrainingGolden* golden_;
  TrainingResult& result_;
  std::string impl_;  // the judged one
};

/// Selected keys of one row as 0/1.
std::vector<uint8_t> selected_keys(const HostTensor& topk, int64_t row, int64_t T) {
  std::vector<uint8_t> selected(T);
  const int64_t k = topk.shape().back();
  for (int64_t i = 0; i < k; ++i) {
    const int64_t t = static_cast<int64_t>(topk.at(row * k + i));
    if (t >= 0 && t < T) selected[t] = 1;
  }
  return selected;
}

/// The k keys of largest mass, ties to the lower index.
std::vector<int64_t> heaviest(const std::vector<double>& mass, int64_t k) {
  std::vector<int64_t> keys(mass.size());
  std::iota(keys.begin(), keys.end(), 0);
  std::stable_sort(keys.begin(), keys.end(),
                   [&](int64_t a, int64_t b) { return mass[a] > mass[b]; });
  keys.resize(k);
  return keys;
}

}  // namespace

Recall recall_of(const ModelConfig& config, const Batch& batch, const Trace& dense) {
  Recall sum;
  int64_t rows = 0;
  const int64_t T = batch.S, k = config.index_topk;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const HostTensor& topk = *dense.find(layer_tap(layer, "topk"));
    const HostTensor& target = *dense.find(layer_tap(layer, "kl.target"));
    for (int64_t b = 0; b < batch.B; ++b)
      for (int64_t s = 0, seen = 0; s < batch.S; ++s) {
        if (!batch.valid(b, s) || ++seen <= k) continue;
        const int64_t row = b * batch.S + s;
        const std::vector<uint8_t> selected = selected_keys(topk, row, T);
        std::vector<double> mass(T);
        for (int64_t t = 0; t < T; ++t) {
          mass[t] = target.at(row * T + t);
          sum.mass += selected[t] * mass[t];
        }
        for (const int64_t t : heaviest(mass, k)) sum.keys += selected[t] / static_cast<double>(k);
        ++rows;
      }
  }
  if (rows == 0) return {};
  return {sum.keys / static_cast<double>(rows), sum.mass / static_cast<double>(rows)};
}

void judge_kl_training(const TrainingJob& job, const KlTask& task,
                       const golden::TrainingGolden* golden, TrainingResult& result) {
  Training(job, task, golden, result).run();
}

}  // namespace dsv32::harness
