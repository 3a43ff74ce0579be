#include "harness/training/step/evidence.h"

#include <algorithm>
#include <cmath>

#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "src/model/check_name.h"

namespace dsv32::harness {

namespace {

/// A gradient of a 16-bit run is that far from the float64 one that only its larger elements have
/// a sign of which one can be sure.
constexpr double kNarrowNoise = 0.5;

/// A stored weight lies within one number of its type from where it should be, whichever way it is
/// rounded; one that was stored before, as the second step finds it, by another half.
double slack_of(size_t step) { return step == 0 ? 1 : 1.5; }

/// To the digits that its uncertainty leaves.
double as_told(double gain, double uncertainty) {
  if (!(uncertainty > 0)) return gain;
  const double step = std::pow(10, std::ceil(std::log10(uncertainty)));
  const double told = std::round(gain / step) * step;
  return told == 0 ? gain : told;
}

}  // namespace

double Distance::relative() const {
  const double left = std::sqrt(error) - rounding;
  if (!(left > 0)) return std::isnan(left) ? left : 0;
  return size > 0 ? left / std::sqrt(size) : INFINITY;
}

Distance& Distance::operator+=(const Distance& other) {
  error += other.error;
  size += other.size;
  dot += other.dot;
  own += other.own;
  rounding = std::hypot(rounding, other.rounding);
  return *this;
}

StepEvidence::StepEvidence(const Candidate& candidate, const golden::TrainingGolden& golden)
    : candidate_(candidate),
      golden_(golden),
      recipe_(read_step_recipe(golden.attributes.at("recipe"), golden.name)),
      dtype_(stored_type(parse_dtype(candidate.trace.metadata.at("dtype")))),
      weights_(step_weights(candidate.the_case, golden.parameter_names)) {
  if (!is_narrow(dtype_)) return;
  recipe_.noise = kNarrowNoise;
  for (const std::string& name : names()) {
    const HostTensor* own = update(0, name);
    if (own == nullptr) continue;
    std::vector<double> values = weights_->at(name);
    for (size_t i = 0; i < values.size(); ++i) values[i] += own->at(static_cast<int64_t>(i));
    const HostTensor kept = HostTensor::from_doubles(dtype_, own->shape(), values);
    // A difference of two 16-bit numbers that is stored in 16 bits may itself be rounded.
    bool narrow = own->dtype() == dtype_;
    if (!narrow) narrow = kept.to_doubles() == values;
    if (narrow) stored_[name] = dtype_;
  }
}

DType StepEvidence::stored(const std::string& name) const {
  const auto found = stored_.find(name);
  return found == stored_.end() ? DType::float32 : found->second;
}

const HostTensor* StepEvidence::update(size_t step, const std::string& name) const {
  return candidate_.trace.find(step_name(static_cast<int64_t>(step), "update", name));
}

bool StepEvidence::any_update(size_t step) const {
  return std::any_of(names().begin(), names().end(),
                     [&](const std::string& name) { return update(step, name) != nullptr; });
}

bool StepEvidence::every_update(size_t step) const {
  return std::all_of(names().begin(), names().end(),
                     [&](const std::string& name) { return update(step, name) != nullptr; });
}

void StepEvidence::collect() {
  constexpr size_t kSteps = 2;
  for (size_t t = 0; t < kSteps && any_update(t); ++t) {
    if (t > 0 && !every_update(t - 1)) break;
    // Weights that a wrong step has moved make choices of their own.
    const bool right_so_far = t == 0 || worst(expected(Rule{})) <= 1;
    const Trace* decisions = right_so_far ? &golden_.decisions.at(t) : nullptr;
    Step step{.parts = step_gradients(the_case(), recipe_, decisions, static_cast<int64_t>(t),
                                      *weights_)};
    for (const std::string& name : names()) step.weights[name] = weights_->at(name);
    steps_.push_back(std::move(step));
    if (!every_update(t)) continue;
    for (const std::string& name : names()) {
      const DType kept = stored(name);
      weights_->add(name, *update(t, name), is_narrow(kept) ? kept : DType::float64);
    }
  }
}

std::vector<Updates> StepEvidence::expected(const Rule& rule,
                                            const std::set<std::string>& only) const {
  StepOptimizer optimizer(recipe_, rule, only);
  std::vector<Updates> updates;
  for (const Step& step : steps_) updates.push_back(optimizer.step(step.parts, step.weights));
  return updates;
}

std::vector<Updates> StepEvidence::expected(const std::vector<Parts>& parts) const {
  StepOptimizer optimizer(recipe_, Rule{});
  std::vector<Updates> updates;
  for (size_t t = 0; t < parts.size(); ++t)
    updates.push_back(optimizer.step(parts[t], steps_[t].weights));
  return updates;
}

Distance StepEvidence::distance(size_t step, const std::string& name,
                                const Updates& expected) const {
  return distance(step, name, expected, 1);
}

/// Of `gain` times the expected update.
Distance StepEvidence::distance(size_t step, const std::string& name, const Updates& expected,
                                double gain) const {
  Distance d;
  const HostTensor* own = update(step, name);
  if (own == nullptr) return d;
  const std::vector<double>& values = expected.values.at(name);
  const std::vector<double>& weights = steps_[step].weights.at(name);
  const std::vector<bool>& tell = expected.tell.at(name);
  const DType kept = stored(name);
  const double slack = is_narrow(kept) ? slack_of(step) : 0;
  double squares = 0;  // of the weights
  for (size_t i = 0; i < values.size(); ++i) {
    if (!tell[i]) continue;
    const double value = own->at(static_cast<int64_t>(i)), right = gain * values[i];
    double error = std::fabs(value - right);
    if (slack > 0) {
      const double largest = std::max(std::fabs(weights[i]), std::fabs(weights[i] + right));
      error = std::max(error - slack * ulp_at(largest, kept), std::isnan(error) ? error : 0.0);
    }
    d.error += error * error;
    d.size += values[i] * values[i];
    d.dot += value * values[i];
    d.own += value * value;
    squares += weights[i] * weights[i];
  }
  const double numbers = epsilon(DType::float32) * std::max(1.0, std::fabs(gain));
  if (slack == 0) d.rounding = numbers * std::sqrt(squares);
  return d;
}

Distance StepEvidence::distance(size_t step, const Updates& expected) const {
  Distance all;
  for (const auto& [name, values] : expected.values) all += distance(step, name, expected);
  return all;
}

double StepEvidence::worst(const std::vector<Updates>& expected) const {
  const double one = limit_of("candidate.update", {.dtype = dtype_});
  const double all = limit_of("candidate.updates", {.dtype = dtype_});
  double worst = 0;
  for (size_t t = 0; t < expected.size(); ++t) {
    worst = keep_larger(worst, distance(t, expected[t]).relative() / all);
    for (const auto& [name, values] : expected[t].values)
      worst = keep_larger(worst, distance(t, name, expected[t]).relative() / one);
  }
  return worst;
}

int64_t StepEvidence::told(size_t step, const std::string& name, const Updates& expected) const {
  if (update(step, name) == nullptr) return 0;
  const std::vector<bool>& tell = expected.tell.at(name);
  return std::count(tell.begin(), tell.end(), true);
}

/// Rounded to 16 bits, an update times a number is only nearly that: the plain ones are tried.
template <typename DistanceAt>
std::optional<double> StepEvidence::gain_by(const DistanceAt& distance_at) const {
  const Distance plain = distance_at(1.0);
  if (!(plain.size > 0)) return std::nullopt;
  if (plain.own == 0) return 0;
  const double limit = limit_of("candidate.update", {.dtype = dtype_});
  std::vector<double> gains = {plain.dot / plain.size};
  if (is_narrow(dtype_)) gains = {0.1, 0.2, 0.5, 2, 5, 10, 20, 50, 100, -1};
  const auto left_of = [](const Distance& d) {
    return std::max(std::sqrt(d.error) - d.rounding, 0.0) / std::sqrt(d.own);
  };
  constexpr double kBetter = 0.75;  // of what the right one leaves
  std::optional<double> best;
  double least = is_narrow(dtype_) ? kBetter * left_of(plain) : INFINITY;
  for (const double gain : gains) {
    const Distance d = distance_at(gain);
    const double left = left_of(d);
    if (!(left <= limit && left < least)) continue;
    least = left;
    best = is_narrow(dtype_) ? gain : as_told(gain, d.rounding / std::sqrt(d.size));
  }
  return best;
}

std::optional<double> StepEvidence::gain(size_t step, const std::string& name,
                                         const Updates& expected) const {
  return gain_by([&](double gain) { return distance(step, name, expected, gain); });
}

std::optional<double> StepEvidence::gain(size_t step, const Updates& expected) const {
  return gain_by([&](double gain) {
    Distance all;
    for (const auto& [name, values] : expected.values) all += distance(step, name, expected, gain);
    return all;
  });
}

}  // namespace dsv32::harness
