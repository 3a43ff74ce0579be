#include "harness/training/step/narrow.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "harness/judge/limits.h"

namespace dsv32::harness {
namespace {

/// How a trainer keeps its weights.
enum class Keeping { rounded, with_masters, stochastic };
constexpr std::array kKeepings = {Keeping::rounded, Keeping::with_masters, Keeping::stochastic};

double rounded(double value, DType dtype) {
  const double ulp = ulp_at(value, dtype);
  return ulp > 0 ? std::nearbyint(value / ulp) * ulp : value;
}

/// What becomes of one element in a step: stochastic rounding does what is asked of it on average.
double stored_update(Keeping keeping, DType dtype, double weight, double behind, double update) {
  if (keeping == Keeping::stochastic || !is_narrow(dtype)) return update;
  const double from = keeping == Keeping::with_masters ? behind : weight;
  return rounded(from + update, dtype) - weight;
}

/// Least squares of the error of the right rule on what a fault changes.
struct Fit {
  double changes = 0, product = 0, noise = 0, errors = 0;  // sums of c c, c e, (c e)^2, e e
  void add(double change, double error) {
    changes += change * change;
    product += change * error;
    noise += change * change * error * error;
    errors += error * error;
  }
  double share() const { return changes > 0 ? product / changes : 0; }
  bool certain() const {
    return std::fabs(product) > limit_of("structure.certainty") * std::sqrt(noise);
  }
  double left() const { return errors - 2 * product + changes; }
  /// The fault would move the weights by so much of what rounding and noise do.
  double strength() const { return errors > 0 ? std::sqrt(changes / errors) : INFINITY; }
};

/// What a fault would make of every step; made when it is looked at, as large as the model.
struct Hypothesis {
  std::string name, words;
  std::function<std::vector<Updates>()> updates;
};

/// The second step's gradients times a number, none clipped: only the ratio matters.
std::vector<Updates> with_clip_ratio(const StepEvidence& evidence, double ratio) {
  StepOptimizer optimizer(evidence.recipe(), {.clip = ClipBy::none});
  std::vector<Updates> updates;
  for (const StepEvidence::Step& step : evidence.steps()) {
    Parts parts = step.parts;
    for (PartGradients& part : parts)
      for (auto& [name, values] : part.gradients)
        for (double& value : values) value *= updates.empty() ? 1 : ratio;
    updates.push_back(optimizer.step(parts, step.weights));
  }
  return updates;
}

std::vector<Hypothesis> hypotheses(const StepEvidence& evidence) {
  constexpr double kAway = 3;  // from the right ratio, which is about 1
  const std::string words = "clipping: the factor of step 1 over that of step 0 is too ";
  std::vector<Hypothesis> all = {
      {"clip-factor", words + "large", [&] { return with_clip_ratio(evidence, kAway); }},
      {"clip-factor", words + "small", [&] { return with_clip_ratio(evidence, 1 / kAway); }}};
  for (const StepFault& fault : step_faults())
    all.push_back({fault.name, fault.words, [&] { return evidence.expected(fault.rule); }});
  return all;
}

class Shares {
 public:
  Shares(const StepEvidence& evidence, size_t step)
      : evidence_(evidence), step_(step), right_(evidence.expected(Rule{})) {}

  /// How much of a fault there is, and what it leaves of the squared error.
  std::pair<double, double> of(const std::vector<Updates>& wrong) const {
    if (fitted(Keeping::stochastic, wrong).strength() <
        limit_of("candidate.strength", {.dtype = evidence_.dtype()}))
      return {0, INFINITY};
    double share = INFINITY, left = INFINITY;
    for (const Keeping keeping : kKeepings) {
      const Fit fit = fitted(keeping, wrong);
      share = std::min(share, fit.certain() ? fit.share() : 0);
      left = std::min(left, fit.left());
    }
    return {share, left};
  }

 private:
  Fit fitted(Keeping keeping, const std::vector<Updates>& wrong) const {
    Fit fit;
    for (const auto& [name, right] : right_[step_].values) {
      const HostTensor* own = evidence_.update(step_, name);
      if (own == nullptr) continue;
      const auto& weights = evidence_.steps()[step_].weights.at(name);
      const auto& start = evidence_.steps()[0].weights.at(name);
      const std::vector<bool>&told = right_[step_].tell.at(name),
            &other = wrong[step_].tell.at(name);
      const DType kept = evidence_.stored(name);
      for (size_t i = 0; i < right.size(); ++i) {
        if (!told[i] || !other[i]) continue;
        const auto stored = [&](const std::vector<Updates>& rule) {
          double behind = start[i];
          for (size_t t = 0; t < step_; ++t) behind += rule[t].values.at(name)[i];
          return stored_update(keeping, kept, weights[i], behind, rule[step_].values.at(name)[i]);
        };
        const double expected = stored(right_);
        fit.add(stored(wrong) - expected, own->at(static_cast<int64_t>(i)) - expected);
      }
    }
    return fit;
  }

  const StepEvidence& evidence_;
  size_t step_;
  std::vector<Updates> right_;
};

}  // namespace

Standing standing(const StepEvidence& evidence, size_t step, const std::string& name,
                  const Updates& expected) {
  Standing all;
  const HostTensor* own = evidence.update(step, name);
  const DType kept = evidence.stored(name);
  if (own == nullptr || !is_narrow(kept)) return all;
  const auto& weights = evidence.steps()[step].weights.at(name);
  const std::vector<double>& values = expected.values.at(name);
  for (size_t i = 0; i < values.size(); ++i) {
    const bool seen = std::fabs(values[i]) > ulp_at(weights[i], kept) / 2;
    if (!expected.tell.at(name)[i] || !seen) continue;
    ++all.seen;
    all.still += own->at(static_cast<int64_t>(i)) == 0 ? 1 : 0;
  }
  return all;
}

FaultShare largest_share(const StepEvidence& evidence, size_t step) {
  const Shares shares(evidence, step);
  const double limit = limit_of("candidate.fault", {.dtype = evidence.dtype()});
  FaultShare largest;
  double least = INFINITY;
  for (Hypothesis& fault : hypotheses(evidence)) {
    const auto [share, left] = shares.of(fault.updates());
    const bool there = share > limit;
    if (there ? !(left < least) : largest.share > limit || !(share > largest.share)) continue;
    if (there) least = left;
    largest = {std::move(fault.name), std::move(fault.words), share};
  }
  return largest;
}

}  // namespace dsv32::harness
