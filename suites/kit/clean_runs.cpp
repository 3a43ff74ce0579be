#include "suites/kit/clean_runs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "src/model/check_name.h"
#include "suites/kit/case_report.h"

namespace dsv32::suites {
namespace {

constexpr uint64_t kRuns = 40;

/// "end param" of all parameters, "step loss" of all steps, "steps grad" of all gradients.
std::string family_of(const std::string& check) {
  const CheckName name = check_of(check);
  return to_string(name.scope) + " " + name.what;
}

using Largest = std::map<std::string, double>;

void note_largest(const harness::TrainingResult& result, Largest& largest) {
  for (const harness::Verdict& v : result.verdicts) {
    for (const harness::Measure& m : v.measures) {
      double& value = largest[v.subject.label + ": " + family_of(v.tap) + " " + m.metric +
                              ", limit " + std::to_string(m.limit)];
      value = std::max(value, m.measured);
    }
  }
}

}  // namespace

void expect_clean_runs(const harness::TrainingJob& job,
                       harness::TrainingResult (*judge)(const harness::TrainingJob&),
                       uint64_t first_seed) {
  Largest largest;
  int alarms = 0;
  for (uint64_t seed = first_seed; seed < first_seed + kRuns; ++seed) {
    harness::TrainingJob task = job;
    task.perturbation_seed = seed;
    const harness::TrainingResult result = judge(task);
    EXPECT_FALSE(result.verdicts.empty()) << "seed " << seed;
    note_largest(result, largest);
    const std::string alarm = complaints(result.verdicts);
    alarms += alarm.empty() ? 0 : 1;
    EXPECT_EQ(alarm, "") << "seed " << seed;
  }
  for (const auto& [name, value] : largest) std::printf("%-100s %.3g\n", name.c_str(), value);
  std::printf("%d clean runs, %d false alarms\n", static_cast<int>(kRuns), alarms);
}

}  // namespace dsv32::suites
