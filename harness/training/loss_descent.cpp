// Loss descent: the LM loss under AdamW, against real transformers with torch.optim.AdamW. Judged
// step by step from the oracle's state, and as a free curve.

#include "harness/training/loss_descent.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "golden/reader/training_golden.h"
#include "harness/judge/curve.h"
#include "harness/judge/decisions/decisions.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/recipe_text.h"
#include "harness/training/replay.h"
#include "harness/training/step/judge.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

using training::StepRecord;
using training::TensorTable;

bool trained(const std::string& name) { return !is_indexer(name) && !is_buffer(name); }

bool is_tiny(const Case& c) { return c.config_name == "tiny"; }

double largest_relative(const std::vector<double>& values, const std::vector<double>& expected) {
  double largest = 0;
  for (size_t t = 0; t < expected.size(); ++t) {
    const double gap = std::fabs(values.at(t) - expected[t]);
    largest = keep_larger(largest, gap == 0 ? 0 : gap / std::fabs(expected[t]));
  }
  return largest;
}

double largest_loss_distance(const std::vector<double>& values,
                             const std::vector<double>& expected) {
  double largest = 0;
  for (size_t t = 0; t < expected.size(); ++t)
    largest = keep_larger(largest, loss_distance(values.at(t), expected[t]));
  return largest;
}

double mean_of(const std::vector<double>& values, size_t first, size_t count) {
  return std::accumulate(values.begin() + first, values.begin() + first + count, 0.0) /
         static_cast<double>(count);
}

/// Last cycle over first.
double fall_of(const std::vector<double>& loss) {
  const size_t cycle = std::min<size_t>(kBatches, loss.size() / 2);
  if (cycle == 0) return 1;
  return mean_of(loss, loss.size() - cycle, cycle) / mean_of(loss, 0, cycle);
}

class Judge {
 public:
  Judge(const TrainingJob& job, const Descent& descent, const DescentPlan& plan)
      : job_(job),
        descent_(descent),
        plan_(plan),
        golden_(golden::load_training(descent.golden, job.the_case.name)) {
    set_training_threads(job.the_case, job.settings);
  }

  TrainingResult run() {
    if (plan_.golden) judge_recipe();
    follow_oracle();
    for (const std::string& impl : job_.impls) {
      if (plan_.free) judge_free(impl);
      if (plan_.narrow) measure_narrow(impl);
    }
    return std::move(result_);
  }

 private:
  void put(Verdict verdict) { result_.verdicts.push_back(std::move(verdict)); }
  void figure(const std::string& name, const std::string& impl, double value) {
    result_.figures.emplace_back(figure_of(name + descent_.note, impl), value);
  }
  Subject subject_of(const std::string& impl) const { return judged_side(impl, descent_.note); }
  Subject golden_subject() const { return golden_side(descent_.note); }
  /// The first steps of a series of the golden.
  std::vector<double> golden_series(const char* name) const {
    const std::vector<double>& all = golden_.series.at(name);
    return {all.begin(), all.begin() + plan_.steps};
  }
  /// The band, where the golden has one, is of its loss.
  bool has_band() const { return golden_.band.has_value(); }

  /// The golden was trained as this suite trains.
  void judge_recipe() {
    const std::string expected = recipe_text(descent_.recipe);
    const std::string& got = golden_.attributes.at("recipe");
    Verdict verdict = curve_check(golden_subject(), rule_name("recipe"), Mode::exact, 1);
    verdict.measures.push_back({"exact", got == expected ? 0.0 : 1.0, 0, "one recipe for both"});
    if (got != expected) verdict.note = "expected " + expected + ", got " + got;
    settle(verdict);
    put(std::move(verdict));
  }

  // --- the oracle, the golden, and the judged sides step by step ---------------------------------

  void follow_oracle() {
    StepJudge steps(job_, descent_.recipe, descent_.note);
    const bool whole = plan_.golden && plan_.steps == descent_.recipe.steps;
    ReplayedRun oracle;
    if (whole) oracle.start = steps.oracle().parameters().clone();
    for (int64_t t = 0; t < plan_.steps; ++t)
      steps.step(t, &golden_.decisions.at(t), plan_.judged(t));
    oracle.loss = oracle_loss_ = steps.curve().loss;
    oracle.grad_norm = steps.curve().grad_norm;
    if (plan_.golden) judge_golden_curve(oracle);
    if (whole) {
      oracle.end = steps.oracle().parameters().clone();
      for (Verdict& verdict : judge_golden_parameters(golden_, oracle)) {
        verdict.subject = golden_subject();
        put(std::move(verdict));
      }
    }
    for (Verdict& verdict : steps.verdicts()) put(std::move(verdict));
  }

  void judge_golden_curve(const ReplayedRun& oracle) {
    const std::vector<double> loss = golden_series("loss");
    Verdict verdict = curve_check(golden_subject(), curve_name("loss"), Mode::forced, loss.size());
    verdict.measures.push_back(loss_measure(loss, oracle.loss));
    settle(verdict);
    put(std::move(verdict));
    Verdict norm =
        curve_check(golden_subject(), curve_name("grad_norm"), Mode::forced, loss.size());
    norm.measures.push_back(
        by_limit("descent.grad_norm", {.config = job_.the_case.config_name},
                 largest_relative(golden_series("grad_norm"), oracle.grad_norm)));
    settle(norm);
    put(std::move(norm));
    judge_fall(golden_subject(), loss);
  }

  Measure loss_measure(const std::vector<double>& loss, const std::vector<double>& expected) const {
    return by_limit("descent.loss", {.config = job_.the_case.config_name},
                    largest_loss_distance(loss, expected));
  }

  static Verdict curve_check(const Subject& subject, const std::string& tap, Mode mode,
                             size_t checked) {
    Verdict verdict;
    verdict.subject = subject;
    verdict.tap = tap;
    verdict.mode = mode;
    verdict.checked = static_cast<int64_t>(checked);
    return verdict;
  }

  /// A curve that does not fall shows nothing about a descent.
  void judge_fall(const Subject& subject, const std::vector<double>& loss) {
    if (plan_.steps < descent_.recipe.steps) return;
    const Measure fall = by_limit("descent.fall", fall_of(loss));
    Verdict verdict = curve_check(subject, curve_name("loss.falls"), Mode::forced, loss.size());
    if (!fall.within()) verdict.trust = Trust::vacuous;
    if (!fall.within()) verdict.note = "the loss did not fall by the stated amount";
    verdict.measures.push_back(fall);
    put(std::move(verdict));
    result_.figures.emplace_back(subject.label + " first loss", loss.front());
    result_.figures.emplace_back(subject.label + " last loss", loss.back());
  }

  // --- the free curve ---------------------------------------------------------------------------

  TrainingSide free_side(const std::string& impl, const std::string& name, DType dtype) const {
    return TrainingSide(job_, descent_.recipe,
                        {.name = name,
                         .impl = impl,
                         .dtype = dtype,
                         .dialect = job_.dialect,
                         .bug = job_.bug,
                         .ulp_seed = job_.perturbation_seed});
  }

  Batch batch_of(int64_t step) const {
    return make_batch(job_.the_case, descent_.recipe.memorised ? 0 : step % kBatches);
  }

  void judge_free(const std::string& impl) {
    int64_t flip = -1;  // first step whose own decisions differ
    const std::vector<double> loss = free_curve(impl, flip);
    result_.tokens += static_cast<double>(plan_.steps * job_.the_case.B * job_.the_case.S);
    Verdict verdict = curve_check(subject_of(impl), curve_name("loss"), Mode::free, loss.size());
    verdict.note = flip < 0 ? "no decision differs from the golden's"
                            : "a decision differs in step " + std::to_string(flip) +
                                  "; replayed from there on";
    verdict.measures.push_back(loss_measure(loss, oracle_loss_));
    verdict.curve = {.values = loss, .expected = oracle_loss_};
    if (has_band()) add_band(loss, verdict);
    settle(verdict);
    put(std::move(verdict));
    judge_fall(subject_of(impl), loss);
    figure("first flipped step", impl, static_cast<double>(flip));
    figure("largest relative gap to float64", impl, largest_loss_distance(loss, oracle_loss_));
  }

  /// Own decisions until one differs from the golden's in a judged row; the golden's from there on.
  std::vector<double> free_curve(const std::string& impl, int64_t& flip) {
    TrainingSide side = free_side(impl, subject_of(impl).label + " free", DType::float32);
    std::vector<double> loss;
    for (int64_t t = 0; t < plan_.steps; ++t) {
      const Trace& known = golden_.decisions.at(t);
      StepRecord record = side.trainer().measure(t, flip < 0 ? nullptr : &known);
      if (flip < 0 && flipped(record.decisions, known, batch_of(t))) {
        flip = t;
        judge_flip(impl, side, t);
        record = side.trainer().measure(t, &known);
      }
      side.trainer().apply(record);
      loss.push_back(record.loss);
    }
    return loss;
  }

  static bool flipped(const Trace& own, const Trace& known, const Batch& batch) {
    return std::any_of(known.names().begin(), known.names().end(), [&](const std::string& name) {
      const HostTensor* mine = own.find(name);
      return mine == nullptr || count_flips(*mine, *known.find(name), batch).differing_rows > 0;
    });
  }

  /// Every decision of this step by its rule, under the weights of this moment.
  void judge_flip(const std::string& impl, const TrainingSide& side, int64_t step) {
    const Subject subject = subject_of(impl);
    const CaseRun run(job_.the_case, batch_of(step), side.weights(), false, job_.settings);
    const Trace trace =
        run.run({.dtype = DType::float32, .dialect = job_.dialect}, subject.label, impl);
    for (Verdict& verdict : run.judge_forced({.subject = subject, .impl = impl, .trace = &trace})) {
      if (!is_decision(verdict.tap)) continue;
      verdict.note = "free run, step " + std::to_string(step) +
                     (verdict.note.empty() ? "" : "; " + verdict.note);
      put(std::move(verdict));
    }
  }

  void add_band(const std::vector<double>& loss, Verdict& verdict) const {
    const golden::Band& band = *golden_.band;
    const BandDistance distance = distance_from_band(band, loss);
    verdict.measures.push_back(by_limit("band.z", distance.largest_z));
    add_band_to(*verdict.curve, band);
    if (loss.size() == band.mean.size()) {
      verdict.measures.push_back(
          by_limit("band.distance", {.components = std::ssize(band.variances), .runs = band.runs},
                   distance.mahalanobis));
    }
    verdict.measures.push_back(by_limit("band.persistence", distance.persistence));
  }

  // --- bfloat16 with float32 masters: figures, no verdict ---------------------------------------

  void measure_narrow(const std::string& impl) {
    TrainingSide side = free_side(impl, impl + " bfloat16", DType::bfloat16);
    std::vector<double> loss;
    for (int64_t t = 0; t < plan_.steps; ++t) loss.push_back(side.step(t).loss);
    figure("bfloat16 first loss", impl, loss.front());
    figure("bfloat16 last loss", impl, loss.back());
    figure("bfloat16 largest relative gap to float64", impl,
           largest_loss_distance(loss, oracle_loss_));
  }

  TrainingJob job_;
  Descent descent_;
  DescentPlan plan_;
  golden::TrainingGolden golden_;
  std::vector<double> oracle_loss_;
  TrainingResult result_;
};

}  // namespace

Descent full_descent(const Case& c) {
  return {.golden = "loss_descent",
          .recipe = {.name = "loss_descent",
                     .groups = {{.name = "all", .clip = 1.0, .takes = trained}},
                     .steps = is_tiny(c) ? 50 : 20}};
}

Descent memorised_descent(const Case&) {
  const training::AdamW adamw{.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.999};
  return {.golden = "loss_descent_memorised",
          .recipe = {.name = "loss_descent_memorised",
                     .groups = {{.name = "all", .adamw = adamw, .takes = trained}},
                     .steps = 50,
                     .memorised = true},
          .note = ", memorised"};
}

DescentPlan full_plan(const Case& c, const Descent& descent) {
  // Bugs of a step show in the first ones; the later ones tell whether a long state matters.
  const int64_t early = is_tiny(c) ? 10 : 2, stride = is_tiny(c) ? 5 : 8;
  return {.steps = descent.recipe.steps,
          .judged = [=](int64_t t) { return t < early || t % stride == stride - 1; },
          .narrow = is_tiny(c) && !descent.recipe.memorised};
}

TrainingResult judge_descent(const TrainingJob& job, const Descent& descent,
                             const DescentPlan& plan) {
  return Judge(job, descent, plan).run();
}

TrainingResult judge_accumulation(const TrainingJob& job) {
  constexpr int64_t kSteps = 2, kMicroBatches = 2;
  training::Recipe recipe = full_descent(job.the_case).recipe;
  recipe.micro_batches = kMicroBatches;
  set_training_threads(job.the_case, job.settings);
  StepJudge steps(job, recipe, ", 2 micro-batches");
  for (int64_t t = 0; t < kSteps; ++t) steps.step(t, nullptr, true);
  return {.verdicts = steps.verdicts()};
}

TrainingResult judge_loss_descent(const TrainingJob& job) {
  const Descent full = full_descent(job.the_case);
  TrainingResult result = judge_descent(job, full, full_plan(job.the_case, full));
  result += judge_accumulation(job);
  const Descent memorised = memorised_descent(job.the_case);
  if (!lists_golden(memorised.golden, job.the_case.name)) return result;
  result += judge_descent(job, memorised, full_plan(job.the_case, memorised));
  return result;
}

}  // namespace dsv32::harness
