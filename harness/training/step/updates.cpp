#include "harness/training/step/updates.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include "harness/cases/gradient_patterns.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "harness/training/step/rules.h"
#include "src/model/check_name.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

using Names = std::vector<std::string>;

/// Weights that change between two runs.
class OwnWeights : public WeightSource {
 public:
  OwnWeights(const Case& c, const SyntheticWeights& start) : start_(start) {
    for (const WeightSpec& spec : weight_specs(c.config))
      values_[spec.name] = {spec.shape, start.load(spec).to_doubles()};
  }
  HostTensor load(const WeightSpec& spec) const override {
    const auto& [shape, values] = values_.at(spec.name);
    return HostTensor::from_doubles(DType::float64, shape, values);
  }
  std::string identity() const override { return start_.identity(); }
  const std::vector<double>& at(const std::string& name) const { return values_.at(name).second; }
  void add(const std::string& name, const HostTensor& update) {
    std::vector<double>& values = values_.at(name).second;
    for (size_t i = 0; i < values.size(); ++i) values[i] += update.at(static_cast<int64_t>(i));
  }

 private:
  const SyntheticWeights& start_;
  std::map<std::string, std::pair<Shape, std::vector<double>>> values_;
};

struct Distance {
  double error = 0, size = 0, dot = 0, own = 0, weights = 0;  // squares and products
  /// Beyond what the weights' own rounding makes of their difference.
  double relative() const {
    const double left = std::sqrt(error) - epsilon(DType::float32) * std::sqrt(weights);
    if (!(left > 0)) return std::isnan(left) ? left : 0;
    return size > 0 ? left / std::sqrt(size) : INFINITY;
  }
};

class StepUpdateJudge {
 public:
  StepUpdateJudge(const Candidate& candidate, const golden::TrainingGolden& golden)
      : candidate_(candidate),
        trace_(candidate.trace),
        golden_(golden),
        case_(candidate.the_case),
        recipe_(read_step_recipe(golden.attributes.at("recipe"), golden.name)),
        synthetic_(case_),
        weights_(case_, synthetic_) {}

  StepUpdates run() {
    if (!any_update(0)) return {};
    if (recipe_.groups > 1) return skipped("updates of several optimizers are not judged");
    if (is_narrow(parse_dtype(trace_.metadata.at("dtype"))))
      return skipped("the rounding of 16-bit weights is larger than their updates");
    collect();
    const std::vector<Updates> expected = updates_of({});
    for (size_t t = 0; t < steps_.size(); ++t) judge_step(t, expected[t]);
    const bool failed = std::any_of(out_.verdicts.begin(), out_.verdicts.end(),
                                    [](const Verdict& v) { return v.trust == Trust::fail; });
    if (failed) explain(expected);
    return std::move(out_);
  }

 private:
  struct Step {
    Parts parts;
    Tensors weights;  // that it read
  };

  const HostTensor* update(size_t step, const std::string& name) const {
    return trace_.find(step_name(static_cast<int64_t>(step), "update", name));
  }
  bool any_update(size_t step) const {
    const Names& names = golden_.parameter_names;
    return std::any_of(names.begin(), names.end(),
                       [&](const std::string& name) { return update(step, name) != nullptr; });
  }
  bool every_update(size_t step) const {
    const Names& names = golden_.parameter_names;
    return std::all_of(names.begin(), names.end(),
                       [&](const std::string& name) { return update(step, name) != nullptr; });
  }

  StepUpdates skipped(const std::string& why) {
    Verdict verdict = open(0, golden_.parameter_names.front());
    verdict.tap = rule_name("recipe");
    verdict.trust = Trust::skipped;
    verdict.note = why;
    out_.verdicts.push_back(std::move(verdict));
    return std::move(out_);
  }

  Verdict open(size_t step, const std::string& name) const {
    return {.subject = candidate_.subject,
            .tap = step_name(static_cast<int64_t>(step), "update", name),
            .layer = weight_layer(name),
            .mode = Mode::forced};
  }

  /// The gradients of the first step, and of the second where every update of the first is there.
  void collect() {
    constexpr size_t kSteps = 2;
    for (size_t t = 0; t < kSteps && any_update(t); ++t) {
      if (t > 0 && !every_update(t - 1)) break;
      // Weights that a wrong step has moved make choices of their own.
      const Trace* decisions = t == 0 || right_so_far() ? &golden_.decisions.at(t) : nullptr;
      Step step{.parts = step_gradients(case_, recipe_, decisions, static_cast<int64_t>(t),
                                        weights_, golden_.parameter_names)};
      for (const std::string& name : golden_.parameter_names)
        step.weights[name] = weights_.at(name);
      steps_.push_back(std::move(step));
      if (!every_update(t)) continue;
      for (const std::string& name : golden_.parameter_names) weights_.add(name, *update(t, name));
    }
  }

  bool right_so_far() const { return distance(Rule{}) <= 1; }

  /// Of every step, on the candidate's own weights.
  std::vector<Updates> updates_of(const Rule& rule) const {
    StepOptimizer optimizer(recipe_, rule);
    std::vector<Updates> updates;
    for (const Step& step : steps_) updates.push_back(optimizer.step(step.parts, step.weights));
    return updates;
  }

  Distance distance(size_t t, const std::string& name, const Updates& expected) const {
    Distance d;
    const HostTensor* own = update(t, name);
    if (own == nullptr) return d;
    const std::vector<double>& values = expected.values.at(name);
    const std::vector<bool>& tell = expected.tell.at(name);
    for (size_t i = 0; i < values.size(); ++i) {
      if (!tell[i]) continue;
      const double value = own->at(static_cast<int64_t>(i));
      d.error += (value - values[i]) * (value - values[i]);
      d.size += values[i] * values[i];
      d.dot += value * values[i];
      d.own += value * value;
      d.weights += steps_[t].weights.at(name)[i] * steps_[t].weights.at(name)[i];
    }
    return d;
  }

  /// Over all tensors of one step.
  Distance distance(size_t t, const Updates& expected) const {
    Distance all;
    for (const auto& [name, values] : expected.values) {
      const Distance d = distance(t, name, expected);
      all.error += d.error;
      all.size += d.size;
      all.dot += d.dot;
      all.own += d.own;
      all.weights += d.weights;
    }
    return all;
  }

  void judge_step(size_t t, const Updates& expected) {
    Verdict all = open(t, golden_.parameter_names.front());
    all.tap = step_name(static_cast<int64_t>(t), "updates");
    all.layer.reset();
    all.checked = std::ssize(expected.values);
    all.measures.push_back(by_limit("candidate.updates", distance(t, expected).relative()));
    settle(all);
    out_.verdicts.push_back(std::move(all));
    for (const WeightSpec& spec : weight_specs(case_.config)) {
      const HostTensor* own = update(t, spec.name);
      if (own == nullptr || is_buffer(spec.name)) continue;
      Verdict verdict = open(t, spec.name);
      verdict.checked = own->numel();
      if (!expected.values.contains(spec.name)) {
        int64_t moved = 0;
        for (int64_t i = 0; i < own->numel(); ++i) moved += own->at(i) != 0 ? 1 : 0;
        verdict.measures.push_back({"exact", static_cast<double>(moved), 0,
                                    "the golden's recipe does not move this parameter"});
      } else {
        const Distance d = distance(t, spec.name, expected);
        verdict.measures.push_back(by_limit("candidate.update", d.relative()));
        verdict.gain = gain_of(d);
        if (verdict.gain) verdict.structure = "gain " + text(*verdict.gain);
      }
      settle(verdict);
      if (verdict.trust != Trust::fail) verdict.structure.clear();
      out_.verdicts.push_back(std::move(verdict));
    }
  }

  /// To so many digits as updates in float32 tell.
  static double rounded(double gain) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3g", gain);
    return std::atof(text);
  }

  static std::string text(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.4g", value);
    return text;
  }

  /// The right update times one number, if that is what it is.
  static std::optional<double> gain_of(const Distance& d) {
    if (!(d.size > 0)) return std::nullopt;
    if (d.own == 0) return 0;
    const double gain = d.dot / d.size;
    const double left = std::max(d.own - gain * d.dot, 0.0);
    const double rounding =
        epsilon(DType::float32) * std::sqrt(d.weights) * std::max(1.0, std::fabs(gain));
    if (std::sqrt(left) > limit_of("candidate.update") * std::sqrt(d.own) + rounding)
      return std::nullopt;
    return gain;
  }

  // --- why --------------------------------------------------------------------------------------

  /// How far the worst tensor, or a step as a whole, is from this rule, in units of its limit.
  double distance(const Rule& rule) const {
    const std::vector<Updates> expected = updates_of(rule);
    double worst = 0;
    for (size_t t = 0; t < steps_.size(); ++t) {
      worst =
          keep_larger(worst, distance(t, expected[t]).relative() / limit_of("candidate.updates"));
      for (const auto& [name, values] : expected[t].values)
        worst = keep_larger(
            worst, distance(t, name, expected[t]).relative() / limit_of("candidate.update"));
    }
    return worst;
  }

  void explain(const std::vector<Updates>& expected) {
    if (const std::string words = other_masters(expected[0]); !words.empty())
      return add("stale-master-weights", words, failing());
    const StepFault* best = nullptr;
    double nearest = 1;
    for (const StepFault& fault : step_faults()) {
      const double gap = distance(fault.rule);
      if (!(gap <= nearest)) continue;
      nearest = gap;
      best = &fault;
    }
    if (best != nullptr) return add(best->name, best->words, failing());
    if (explain_by_gains(expected[0])) return;
    const std::string words = explain_by_clip(expected);
    add(words.empty() ? "" : "clip-factor",
        words.empty() ? "the updates are off for no known reason" : words, failing());
  }

  Names failing() const {
    Names taps;
    for (const Verdict& verdict : out_.verdicts)
      if (verdict.trust == Trust::fail) taps.push_back(verdict.tap);
    return taps;
  }

  void add(const std::string& name, const std::string& words, Names taps) {
    Diagnosis& diagnosis = out_.diagnosis;
    diagnosis.defects.push_back({.name = name, .words = words, .taps = std::move(taps)});
    diagnosis.causes.push_back((name.empty() ? "not explained: " : "known bug " + name + ": ") +
                               words);
  }

  /// AdamW moves no element by more than about its rate; weights that the optimizer kept from
  /// before they were loaded come back whole.
  std::string other_masters(const Updates& expected) const {
    double largest = 0;
    for (const std::string& name : golden_.parameter_names) {
      const HostTensor* own = update(0, name);
      for (int64_t i = 0; own != nullptr && i < own->numel(); ++i) {
        const double reach =
            recipe_.lr * (1 + recipe_.weight_decay *
                                  std::fabs(steps_[0].weights.at(name)[static_cast<size_t>(i)]));
        largest = std::max(largest, std::fabs(own->at(i)) / reach);
      }
    }
    constexpr double kFar = 100;  // rates: a wrong rate moves all alike, and is a gain
    if (!(largest > kFar) || common_gain(expected)) return "";
    return "the first step moves weights by up to " + text(largest) +
           " learning rates, where AdamW can by one: the optimizer's master weights are not those "
           "that the model read";
  }

  /// One factor for every tensor.
  std::optional<double> common_gain(const Updates& expected) const {
    return gain_of(distance(0, expected));
  }

  /// "updates x 10: the attention (all 14)": another learning rate, or weights that stand still.
  bool explain_by_gains(const Updates& expected) {
    if (const auto gain = common_gain(expected); gain && rounded(*gain) != 1) {
      add("learning-rate-of-group", "updates x " + text(rounded(*gain)) + ": all weights",
          failing());
      return true;
    }
    Names bad, good;
    std::vector<Verdict> verdicts;
    for (const Verdict& verdict : out_.verdicts) {
      const CheckName check = check_of(verdict.tap);
      if (check.step != 0 || verdict.measures.front().metric == "exact") continue;
      if (check.of.empty()) continue;
      Verdict as_gradient = verdict;
      if (as_gradient.gain) as_gradient.gain = rounded(*as_gradient.gain);
      as_gradient.tap = "grad." + check.of;
      (verdict.trust == Trust::fail ? bad : good).push_back(as_gradient.tap);
      verdicts.push_back(std::move(as_gradient));
    }
    const auto explained = [](const Verdict& v) { return v.trust != Trust::fail || v.gain; };
    if (bad.empty() || !std::all_of(verdicts.begin(), verdicts.end(), explained)) return false;
    for (const GradientPattern& pattern : gradient_patterns(bad, good, verdicts)) {
      std::string words = pattern.words;
      words.replace(0, std::string("gradients").size(), "updates");
      Names taps;
      for (const std::string& tap : pattern.taps)
        taps.push_back(step_name(0, "update", tap.substr(std::string("grad.").size())));
      const bool still = words.find("exactly zero") != std::string::npos;
      add(still ? "weights-not-updated" : "learning-rate-of-group", words, std::move(taps));
    }
    return true;
  }

  /// The second step's update mixes the gradients of both: another ratio of their clip factors.
  std::string explain_by_clip(const std::vector<Updates>& expected) const {
    if (steps_.size() < 2 || distance(0, expected[0]).relative() > limit_of("candidate.updates"))
      return "";
    const auto gap = [&](double log_ratio) {
      Parts scaled = steps_[1].parts;
      for (PartGradients& part : scaled)
        for (auto& [name, values] : part.gradients)
          for (double& value : values) value *= std::exp(log_ratio);
      StepOptimizer optimizer(recipe_, {.clip = ClipBy::none});
      optimizer.step(steps_[0].parts, steps_[0].weights);
      return distance(1, optimizer.step(scaled, steps_[1].weights)).relative();
    };
    double low = -4, high = 4;  // factors of e^4 up and down
    constexpr double kGolden = 0.6180339887498949;
    for (int i = 0; i < 40; ++i) {
      const double a = high - kGolden * (high - low), b = low + kGolden * (high - low);
      (gap(a) < gap(b) ? high : low) = gap(a) < gap(b) ? b : a;
    }
    const double at = (low + high) / 2;
    if (gap(at) > limit_of("candidate.updates")) return "";
    const auto all = [](const std::string&) { return true; };
    const auto own = [&](size_t t) {
      return recipe_.clip
                 ? clip_factor(*recipe_.clip, norm_of(mean_gradient(steps_[t].parts, recipe_), all))
                 : 1.0;
    };
    return "clipping: the factor of step 1 over that of step 0 is " + text(std::exp(at)) +
           ", the right one " + text(own(1) / own(0));
  }

  const Candidate& candidate_;
  const Trace& trace_;
  const golden::TrainingGolden& golden_;
  const Case& case_;
  StepRecipe recipe_;
  SyntheticWeights synthetic_;
  OwnWeights weights_;
  std::vector<Step> steps_;
  StepUpdates out_;
};

}  // namespace

StepUpdates judge_step_updates(const Candidate& candidate, const golden::TrainingGolden& golden) {
  return StepUpdateJudge(candidate, golden).run();
}

std::vector<std::pair<std::string, std::string>> step_fault_names() {
  std::vector<std::pair<std::string, std::string>> rows;
  for (const StepFault& fault : step_faults()) rows.emplace_back(fault.name, fault.words);
  rows.emplace_back("clip-factor", "another ratio of the clip factors of two steps");
  rows.emplace_back("learning-rate-of-group", "some weights move by another learning rate");
  rows.emplace_back("weights-not-updated", "some weights stand still");
  rows.emplace_back("stale-master-weights",
                    "the optimizer's master weights are not those that the model read");
  return rows;
}

}  // namespace dsv32::harness
