#include "harness/training/train_candidate.h"

#include <algorithm>
#include <cmath>

#include "golden/reader/training_golden.h"
#include "harness/judge/compare.h"
#include "harness/judge/curve.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/side.h"
#include "src/bridge/bridge.h"
#include "src/model/check_name.h"
#include "src/model/errors.h"
#include "src/model/sketch.h"

namespace dsv32::harness {
namespace {

constexpr char kDefaultSuite[] = "loss_descent";

/// Suites with a golden of this case.
std::vector<std::string> golden_suites(const std::string& case_name) {
  std::vector<std::string> names;
  for (const TrainingSuite& suite : training_suites())
    for (const TrainingGoldenName& golden : suite.goldens)
      if (golden.case_name == case_name && golden::training_exists(golden.suite, case_name))
        names.push_back(golden.suite);
  return names;
}

/// Norm of the difference, estimated from the projections of both sides.
double projected_distance(std::span<const double> a, std::span<const double> b) {
  double squares = 0;
  for (size_t p = 0; p < a.size(); ++p) squares += (a[p] - b[p]) * (a[p] - b[p]);
  return std::sqrt(squares / static_cast<double>(a.size()));
}

class TrainCandidate {
 public:
  TrainCandidate(const Candidate& candidate, golden::TrainingGolden golden)
      : candidate_(candidate),
        trace_(candidate.trace),
        golden_(std::move(golden)),
        start_(candidate.the_case) {}

  std::vector<Verdict> run() {
    for (const char* name : {"loss", "kl", "grad_norm"}) judge_series(name);
    judge_band();
    judge_parameters();
    if (!trace_.has("train.loss") && !trace_.has("train.kl")) {
      Verdict& verdict = open(rule_name("result"), Mode::free);
      verdict.trust = Trust::missing;
      verdict.note = "a training candidate needs train.loss or train.kl";
    }
    return std::move(verdicts_);
  }

 private:
  Verdict& open(const std::string& tap, Mode mode) {
    Verdict verdict;
    verdict.subject = candidate_.subject;
    verdict.tap = tap;
    verdict.mode = mode;
    verdicts_.push_back(std::move(verdict));
    return verdicts_.back();
  }

  void judge_series(const std::string& name) {
    const HostTensor* series = trace_.find("train." + name);
    auto expected = golden_.series.find(name);
    if (expected == golden_.series.end()) expected = golden_.series.find(name + ".lm");
    if (series == nullptr || expected == golden_.series.end()) return;
    const int64_t steps = std::ssize(expected->second);
    if (series->numel() != steps) refuse_steps("train." + name, steps, series->numel());
    for (int64_t t = 0; t < steps; ++t) {
      Verdict& verdict = open(step_name(t, name), Mode::free);
      verdict.checked = 1;
      verdict.measures.push_back(measure(name, t, series->at(t), expected->second[t]));
      settle(verdict);
    }
  }

  /// Outside the band of clean runs may be a small bug or a legitimate flip, which cannot be told
  /// apart without the decisions.
  void judge_band() {
    const HostTensor* loss = trace_.find("train.loss");
    if (loss == nullptr || !golden_.band) return;
    const BandDistance distance = distance_from_band(*golden_.band, loss->to_doubles());
    Verdict& verdict = open(curve_name("loss.band"), Mode::free);
    verdict.checked = loss->numel();
    verdict.measures.push_back(by_limit("band.z", distance.largest_z));
    verdict.curve = {.values = loss->to_doubles(), .expected = golden_.series.at("loss")};
    add_band_to(*verdict.curve, *golden_.band);
    if (verdict.measures.front().within()) return;
    verdict.trust = Trust::skipped;
    verdict.note = "outside it at step " + std::to_string(distance.step) +
                   ": a small bug, or a decision near a tie, which this file does not hold";
  }

  /// Nothing was decided on the way before the first step but in its own forward pass; later steps
  /// inherit every flip.
  Measure measure(const std::string& name, int64_t t, double value, double expected) const {
    const double relative_gap = relative(value, expected);
    if (name == "grad_norm")
      return by_limit(t == 0 ? "candidate.first_grad_norm" : "candidate.grad_norm", relative_gap);
    return by_limit(t == 0 ? "candidate.first_loss" : "candidate.loss", relative_gap);
  }

  [[noreturn]] void refuse_steps(const std::string& tap, int64_t expected, int64_t got) const {
    throw Error(ExitCode::artefact, {.where = candidate_.path.string(),
                                     .what = tap,
                                     .expected = std::to_string(expected) + " steps, as the golden",
                                     .got = std::to_string(got)});
  }

  void judge_parameters() {
    const auto is_weight = [&](const std::string& name) {
      return weight_shape(candidate_.the_case.config, name).has_value();
    };
    const auto& names = golden_.parameter_names;
    if (std::all_of(names.begin(), names.end(), is_weight)) {
      for (const WeightSpec& spec : weight_specs(candidate_.the_case.config)) judge_parameter(spec);
      return;
    }
    Verdict& verdict = open(end_name("params"), Mode::free);
    verdict.trust = Trust::skipped;
    verdict.note = "the golden holds adapters, the file merged weights";
  }

  void judge_parameter(const WeightSpec& spec) {
    const HostTensor* value = trace_.find("param." + spec.name);
    if (value == nullptr || is_buffer(spec.name)) return;
    const auto& names = golden_.parameter_names;
    const auto found = std::find(names.begin(), names.end(), spec.name);
    if (found == names.end()) {
      judge_frozen(spec, *value);
    } else {
      judge_trained(spec, *value, found - names.begin());
    }
  }

  /// What the recipe freezes keeps its bits.
  void judge_frozen(const WeightSpec& spec, const HostTensor& value) {
    const HostTensor start = start_.load(spec);
    int64_t changed = 0;
    for (int64_t i = 0; i < value.numel(); ++i) changed += value.at(i) == start.at(i) ? 0 : 1;
    Verdict& verdict = open(end_name("param", spec.name), Mode::exact);
    verdict.layer = weight_layer(spec.name);
    verdict.checked = value.numel();
    verdict.measures.push_back({"exact", static_cast<double>(changed), 0,
                                "the golden's recipe does not move this parameter"});
    settle(verdict);
  }

  /// Distance from the golden, relative to how far the golden moved it.
  void judge_trained(const WeightSpec& spec, const HostTensor& value, int64_t at) {
    const auto codes = parameter_codes(spec.name, value.numel());
    const ParameterSketch own = sketch_parameter(value.to_doubles(), codes);
    const ParameterSketch start = sketch_parameter(start_.load(spec).to_doubles(), codes);
    const int64_t count = std::ssize(golden_.parameter_names);
    const int64_t entry = std::ssize(golden_.parameter_norms) - count + at;  // of the last step
    std::vector<double> golden;
    for (int64_t p = 0; p < kParameterProjections; ++p)
      golden.push_back(golden_.parameter_projections.at(entry * kParameterProjections + p));
    const double gap = projected_distance(own.projections, golden);
    const double rounding = rounding_floor(value.dtype()) * own.norm;
    const double unit = std::max(projected_distance(start.projections, golden),
                                 rounding / limit_of("candidate.parameter"));
    Verdict& verdict = open(end_name("param", spec.name), Mode::free);
    verdict.layer = weight_layer(spec.name);
    verdict.checked = value.numel();
    verdict.measures.push_back(by_limit("candidate.parameter", gap / unit));
    settle(verdict);
  }

  const Candidate& candidate_;
  const Trace& trace_;
  golden::TrainingGolden golden_;
  SyntheticWeights start_;
  std::vector<Verdict> verdicts_;
};

/// The recipe of the loss_descent goldens (docs/formats.md 10).
training::Recipe loss_descent_recipe(int64_t steps) {
  training::Group group{.name = "all", .clip = 1.0};
  group.takes = [](const std::string& name) { return !is_indexer(name); };
  return {.name = kDefaultSuite, .groups = {group}, .steps = steps};
}

HostTensor series_of(const std::vector<double>& values) {
  return HostTensor::from_doubles(DType::float32, {std::ssize(values)}, values);
}

}  // namespace

std::string golden_suite_of(const Candidate& candidate) {
  const std::string& name = candidate.the_case.name;
  const auto recipe = candidate.trace.metadata.find("recipe");
  const std::vector<std::string> suites = golden_suites(name);
  std::string known;
  for (const std::string& suite : suites) {
    if (recipe == candidate.trace.metadata.end() && suite == kDefaultSuite) return suite;
    if (recipe != candidate.trace.metadata.end() &&
        golden::load_training(suite, name).attributes.at("recipe") == recipe->second)
      return suite;
    known += (known.empty() ? "" : ", ") + suite;
  }
  throw Error(ExitCode::artefact,
              {.where = candidate.path.string(),
               .what = "metadata recipe",
               .expected = known.empty() ? "a case with a training golden, such as tiny-wide"
                                         : "the recipe of a golden of " + name + ": " + known,
               .got = recipe == candidate.trace.metadata.end() ? "none" : recipe->second,
               .hint = "golden/dump --mode train writes it"});
}

StepUpdates judge_train_candidate(const Candidate& candidate, const std::string& suite) {
  const golden::TrainingGolden golden = golden::load_training(suite, candidate.the_case.name);
  StepUpdates updates = judge_step_updates(candidate, golden);
  std::vector<Verdict> verdicts = TrainCandidate(candidate, golden).run();
  append(verdicts, std::move(updates.verdicts));
  updates.verdicts = std::move(verdicts);
  return updates;
}

Trace make_train_trace(const Case& c, const std::string& impl, DType dtype, const Dialect& dialect,
                       const RunSettings& settings) {
  set_training_threads(c, settings);
  const golden::TrainingGolden golden = golden::load_training(kDefaultSuite, c.name);
  const training::Recipe recipe = loss_descent_recipe(std::ssize(golden.series.at("loss")));
  const TrainingJob job{.the_case = c, .settings = settings};
  TrainingSide side(job, recipe,
                    {.name = impl,
                     .impl = impl == "oracle" ? "reference" : impl,
                     .dtype = dtype,
                     .dialect = dialect});
  std::vector<double> loss, grad_norm;
  Trace trace;
  for (int64_t t = 0; t < recipe.steps; ++t) {
    const bool kept = t < 2 || t == recipe.steps - 1;
    const training::TensorTable before = kept ? side.parameters().clone() : training::TensorTable();
    const training::StepRecord record = side.step(t);
    loss.push_back(record.loss);
    grad_norm.push_back(record.grad_norm.front());
    for (const std::string& name : before.names())
      trace.put(step_name(t, "update", name),
                to_host(side.parameters().at(name) - before.at(name), DType::float32));
  }
  trace.metadata["recipe"] = golden.attributes.at("recipe");
  trace.put("train.loss", series_of(loss));
  trace.put("train.grad_norm", series_of(grad_norm));
  for (const std::string& name : side.parameters().names())
    trace.put("param." + name, to_host(side.parameters().at(name), DType::float32));
  return trace;
}

}  // namespace dsv32::harness
