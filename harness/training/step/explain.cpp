#include "harness/training/step/explain.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "harness/cases/gradient_patterns.h"
#include "harness/judge/limits.h"
#include "harness/training/step/factors.h"
#include "harness/training/step/narrow.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

using Names = std::vector<std::string>;

/// To so many digits as updates in float32 tell.
double rounded(double gain) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", gain);
  return std::atof(text);
}

std::string text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

class Explanation {
 public:
  Explanation(const StepEvidence& evidence, const std::vector<Verdict>& verdicts,
              const std::vector<Updates>& expected)
      : evidence_(evidence), verdicts_(verdicts), expected_(expected) {}

  Diagnosis find() {
    if (const std::string words = other_masters(); !words.empty()) {
      add("stale-master-weights", words, failing());
    } else if (is_narrow(evidence_.dtype()) ? !by_share() && !by_gains() : !exactly()) {
      add("", "the updates are off for no known reason", failing());
    }
    return std::move(diagnosis_);
  }

 private:
  Names failing() const {
    Names taps;
    for (const Verdict& verdict : verdicts_)
      if (verdict.trust == Trust::fail) taps.push_back(verdict.tap);
    return taps;
  }

  void add(const std::string& name, const std::string& words, Names taps) {
    diagnosis_.defects.push_back({.name = name, .words = words, .taps = std::move(taps)});
    diagnosis_.causes.push_back((name.empty() ? "not explained: " : "known bug " + name + ": ") +
                                words);
  }

  /// AdamW moves no element by more than about its rate; weights that the optimizer kept from
  /// before they were loaded come back whole.
  std::string other_masters() const {
    double largest = 0;
    for (const std::string& name : evidence_.names()) {
      const HostTensor* own = evidence_.update(0, name);
      const StepGroup& group = evidence_.recipe().group_of(name);
      const std::vector<double>& weights = evidence_.steps()[0].weights.at(name);
      const DType kept = evidence_.stored(name);
      for (int64_t i = 0; own != nullptr && i < own->numel(); ++i) {
        const double weight = weights[static_cast<size_t>(i)];
        const double reach = group.lr * (1 + group.weight_decay * std::fabs(weight));
        const double to_next = is_narrow(kept) ? ulp_at(weight, kept) : 0;
        largest = std::max(largest, (std::fabs(own->at(i)) - to_next) / reach);
      }
    }
    constexpr double kFar = 100;  // rates: a wrong rate moves all alike, and is a gain
    if (!(largest > kFar) || common_gain()) return "";
    return "the first step moves weights by up to " + text(largest) +
           " learning rates, where AdamW can by one: the optimizer's master weights are not those "
           "that the model read";
  }

  /// Where nothing but float32 stands between the updates and a rule.
  bool exactly() {
    return by_rule() || by_gains() || by_factors() || by_rule_of_some() || by_clip_ratio();
  }

  /// Of 16-bit weights: in all updates together of the first step that fails.
  bool by_share() {
    for (const Verdict& verdict : verdicts_) {
      if (verdict.trust != Trust::fail) continue;
      const FaultShare found =
          largest_share(evidence_, static_cast<size_t>(*check_of(verdict.tap).step));
      const Where where{.dtype = evidence_.dtype()};
      if (by_limit("candidate.fault", where, found.share).within()) return false;
      add(found.name, found.words, failing());
      return true;
    }
    return false;
  }

  bool by_rule() {
    const StepFault* best = nullptr;
    double nearest = 1;
    for (const StepFault& fault : step_faults()) {
      const double gap = evidence_.worst(evidence_.expected(fault.rule));
      if (!(gap <= nearest)) continue;
      nearest = gap;
      best = &fault;
    }
    if (best != nullptr) add(best->name, best->words, failing());
    return best != nullptr;
  }

  /// One factor for every tensor.
  std::optional<double> common_gain() const { return evidence_.gain(0, expected_[0]); }

  /// "updates x 10: the attention (all 14)": another learning rate, or weights that stand still.
  bool by_gains() {
    const bool sharp = !is_narrow(evidence_.dtype());  // else each tensor speaks for itself
    if (const auto gain = common_gain(); sharp && gain && rounded(*gain) != 1) {
      add("learning-rate-of-group", "updates x " + text(rounded(*gain)) + ": all weights",
          failing());
      return true;
    }
    const auto explained = [](const Verdict& v) { return v.trust != Trust::fail || v.gain; };
    const std::vector<Verdict> verdicts = as_gradients(0);
    const Names bad = taps_of(verdicts, true), good = taps_of(verdicts, false);
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

  /// The judged updates of single tensors, named as gradients are.
  std::vector<Verdict> as_gradients(int64_t step) const {
    std::vector<Verdict> all;
    for (const Verdict& verdict : verdicts_) {
      const CheckName check = check_of(verdict.tap);
      if (check.step != step || check.of.empty() || verdict.trust == Trust::skipped) continue;
      if (verdict.measures.front().metric == "exact") continue;
      Verdict as_gradient = verdict;
      if (as_gradient.gain) as_gradient.gain = rounded(*as_gradient.gain);
      as_gradient.tap = "grad." + check.of;
      all.push_back(std::move(as_gradient));
    }
    return all;
  }

  static Names taps_of(const std::vector<Verdict>& verdicts, bool failing) {
    Names taps;
    for (const Verdict& verdict : verdicts)
      if ((verdict.trust == Trust::fail) == failing) taps.push_back(verdict.tap);
    return taps;
  }

  static std::set<std::string> weights_of(const Names& taps) {
    std::set<std::string> names;
    for (const std::string& tap : taps) names.insert(tap.substr(std::string("grad.").size()));
    return names;
  }

  /// The first step with failing tensors, which the later ones inherit from: which fail, and which
  /// do not.
  std::pair<Names, Names> first_failing() const {
    for (size_t t = 0; t < evidence_.steps().size(); ++t) {
      const std::vector<Verdict> verdicts = as_gradients(static_cast<int64_t>(t));
      const Names bad = taps_of(verdicts, true);
      if (!bad.empty()) return {bad, taps_of(verdicts, false)};
    }
    return {};
  }

  /// A fault that some tensors alone have: out of the sum over the ranks, without decay.
  bool by_rule_of_some() {
    const auto [bad, good] = first_failing();
    if (bad.empty() || good.empty()) return false;
    const StepFault* best = nullptr;
    double nearest = 1;
    for (const StepFault& fault : step_faults()) {
      if (fault.rule.clip != ClipBy::all) continue;
      const double gap = evidence_.worst(evidence_.expected(fault.rule, weights_of(bad)));
      if (!(gap <= nearest)) continue;
      nearest = gap;
      best = &fault;
    }
    if (best == nullptr) return false;
    add(best->name, std::string(best->words) + ": " + members_of(bad, good), failing());
    return true;
  }

  /// Adapter factors whose gradients are not those of their layer: all that fail, or those of the
  /// first step that has some, which makes later ones read other weights.
  bool by_factors() {
    if (!is_factor(evidence_.names().front())) return false;
    const size_t steps = evidence_.steps().size();
    std::set<std::string> first, all;
    size_t until = steps;
    for (size_t t = 0; t < steps; ++t) {
      const auto failing = weights_of(taps_of(as_gradients(static_cast<int64_t>(t)), true));
      if (first.empty() && !failing.empty()) {
        first = failing;
        until = t + 1;
      }
      all.insert(failing.begin(), failing.end());
    }
    if (first.empty()) return false;
    return add(not_reduced(evidence_, all, steps), all) ||
           add(not_reduced(evidence_, first, until), first) ||
           add(misplaced(evidence_, first), first);
  }

  bool add(const std::optional<FactorFault>& found, const std::set<std::string>& names) {
    if (!found) return false;
    Names bad, good;
    for (const std::string& name : evidence_.names())
      (names.contains(name) ? bad : good).push_back("grad." + name);
    add(found->name, found->words + ": " + members_of(bad, good), failing());
    return true;
  }

  /// The second step's update mixes the gradients of both: another ratio of their clip factors.
  bool by_clip_ratio() {
    const std::string words = clip_ratio();
    if (!words.empty()) add("clip-factor", words, failing());
    return !words.empty();
  }

  std::string clip_ratio() const {
    const auto& steps = evidence_.steps();
    const StepRecipe& recipe = evidence_.recipe();
    const double limit = limit_of("candidate.updates", {.dtype = evidence_.dtype()});
    if (steps.size() < 2 || evidence_.distance(0, expected_[0]).relative() > limit) return "";
    const auto gap = [&](double log_ratio) {
      Parts scaled = steps[1].parts;
      for (PartGradients& part : scaled)
        for (auto& [name, values] : part.gradients)
          for (double& value : values) value *= std::exp(log_ratio);
      StepOptimizer optimizer(recipe, {.clip = ClipBy::none});
      optimizer.step(steps[0].parts, steps[0].weights);
      return evidence_.distance(1, optimizer.step(scaled, steps[1].weights)).relative();
    };
    double low = -4, high = 4;  // factors of e^4 up and down
    constexpr double kGolden = 0.6180339887498949;
    for (int i = 0; i < 40; ++i) {
      const double a = high - kGolden * (high - low), b = low + kGolden * (high - low);
      (gap(a) < gap(b) ? high : low) = gap(a) < gap(b) ? b : a;
    }
    const double at = (low + high) / 2;
    if (gap(at) > limit) return "";
    const auto all = [](const std::string&) { return true; };
    const auto own = [&](size_t t) {
      return recipe.clip
                 ? clip_factor(*recipe.clip, norm_of(mean_gradient(steps[t].parts, recipe), all))
                 : 1.0;
    };
    return "clipping: the factor of step 1 over that of step 0 is " + text(std::exp(at)) +
           ", the right one " + text(own(1) / own(0));
  }

  const StepEvidence& evidence_;
  const std::vector<Verdict>& verdicts_;
  const std::vector<Updates>& expected_;
  Diagnosis diagnosis_;
};

}  // namespace

Diagnosis explain_updates(const StepEvidence& evidence, const std::vector<Verdict>& verdicts,
                          const std::vector<Updates>& expected) {
  return Explanation(evidence, verdicts, expected).find();
}

std::vector<std::pair<std::string, std::string>> other_step_faults() {
  std::vector<std::pair<std::string, std::string>> rows = {
      {"clip-factor", "another ratio of the clip factors of two steps"},
      {"learning-rate-of-group", "some weights move by another learning rate"},
      {"weights-not-updated", "some weights stand still"},
      {"stale-master-weights", "the optimizer's master weights are not those that the model read"}};
  for (const auto& row : factor_faults()) rows.push_back(row);
  return rows;
}

}  // namespace dsv32::harness
