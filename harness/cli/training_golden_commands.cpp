#include "harness/cli/training_golden_commands.h"

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "harness/judge/measure/metrics.h"

namespace dsv32::harness {
namespace {

template <typename Values>
std::string change_of(const Values& a, const Values& b) {
  if (a.size() != b.size())
    return "size " + std::to_string(a.size()) + " became " + std::to_string(b.size());
  const std::vector<double> left(a.begin(), a.end()), right(b.begin(), b.end());
  std::ostringstream text;
  text << "relative difference " << std::setprecision(3) << relative(left, right);
  return text.str();
}

template <typename Values>
void compare_values(const std::string& name, const Values& a, const Values& b,
                    std::vector<Change>& changes) {
  if (a != b) changes.push_back({name, change_of(a, b)});
}

void compare_traces(const std::string& prefix, const Trace& a, const Trace& b,
                    std::vector<Change>& changes) {
  for (const std::string& name : b.names()) {
    const HostTensor *left = a.find(name), *right = b.find(name);
    if (left == nullptr) {
      changes.push_back({prefix + name, "added"});
    } else if (!left->identical(*right)) {
      changes.push_back({prefix + name, "other values"});
    }
  }
  for (const std::string& name : a.names()) {
    if (!b.has(name)) changes.push_back({prefix + name, "removed"});
  }
}

void compare_bands(const golden::TrainingGolden& a, const golden::TrainingGolden& b,
                   std::vector<Change>& changes) {
  if (a.band.has_value() != b.band.has_value()) {
    changes.push_back({"band", b.band ? "added" : "removed"});
  } else if (a.band) {
    compare_values("band mean", a.band->mean, b.band->mean, changes);
    compare_values("band deviation", a.band->deviation, b.band->deviation, changes);
    compare_values("band components", a.band->components, b.band->components, changes);
    compare_values("band variances", a.band->variances, b.band->variances, changes);
  }
}

size_t decision_count(const golden::TrainingGolden& golden) {
  size_t count = 0;
  for (const Trace& step : golden.decisions) count += step.names().size();
  return count;
}

}  // namespace

golden::TrainingGolden load_entry(const golden::ManifestEntry& entry,
                                  const std::filesystem::path& directory) {
  const size_t dot = entry.case_name.find('.');
  const bool named = dot != std::string::npos;
  return golden::load_training(entry.case_name.substr(0, dot),
                               named ? entry.case_name.substr(dot + 1) : std::string(), directory);
}

std::string summary(const golden::TrainingGolden& golden) {
  std::string text = std::to_string(golden.decisions.size()) + " steps, " +
                     std::to_string(golden.series.size()) + " series, " +
                     std::to_string(golden.parameter_names.size()) + " parameters, " +
                     std::to_string(decision_count(golden)) + " decisions";
  const size_t tensors = golden.tensors.names().size();
  if (tensors != 0) text += ", " + std::to_string(tensors) + " tensors";
  if (golden.band) text += ", band of " + std::to_string(golden.band->runs) + " runs";
  return text;
}

void show_content(const golden::TrainingGolden& golden) {
  constexpr int kWidth = 56;
  const auto line = [&](const std::string& name) -> std::ostream& {
    return std::cout << "  " << std::left << std::setw(kWidth) << name << " "
                     << std::setprecision(6);
  };
  std::cout << "series\n";
  for (const auto& [name, values] : golden.series)
    line(name) << "first " << values.front() << " last " << values.back() << "\n";
  std::cout << "parameters after the last step\n";
  const size_t count = golden.parameter_names.size();
  for (size_t i = 0; i < count; ++i) {
    const size_t last = (golden.decisions.size() - 1) * count + i;
    line(golden.parameter_names[i]) << "norm " << golden.parameter_norms[last] << "\n";
  }
  if (!golden.tensors.names().empty()) std::cout << "tensors\n";
  for (const std::string& name : golden.tensors.names())
    line(name) << to_string(golden.tensors.find(name)->shape()) << "\n";
  std::cout << summary(golden) << "\n";
}

void compare_content(const golden::TrainingGolden& a, const golden::TrainingGolden& b,
                     std::vector<Change>& changes) {
  for (const auto& [name, values] : b.series) {
    const auto it = a.series.find(name);
    if (it == a.series.end()) {
      changes.push_back({"series " + name, "added"});
    } else {
      compare_values("series " + name, it->second, values, changes);
    }
  }
  for (const auto& [name, values] : a.series) {
    if (b.series.count(name) == 0) changes.push_back({"series " + name, "removed"});
  }
  const size_t steps = std::min(a.decisions.size(), b.decisions.size());
  for (size_t step = 0; step < steps; ++step) {
    compare_traces("step " + std::to_string(step) + " ", a.decisions[step], b.decisions[step],
                   changes);
  }
  compare_values("parameter norms", a.parameter_norms, b.parameter_norms, changes);
  compare_values("parameter projections", a.parameter_projections, b.parameter_projections,
                 changes);
  compare_bands(a, b, changes);
  compare_traces("tensor ", a.tensors, b.tensors, changes);
}

}  // namespace dsv32::harness
