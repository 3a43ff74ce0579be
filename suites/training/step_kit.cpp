#include "suites/training/step_kit.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "harness/training/step/weights.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "src/model/lora.h"

namespace dsv32::suites {

using harness::StepUpdates;
using harness::Trust;

StepUpdates judged(const std::string& case_name, const std::string& golden, Trace trace) {
  trace.metadata.emplace("dtype", "float32");
  const harness::Candidate candidate{.path = "mine",
                                     .trace = std::move(trace),
                                     .the_case = io::find_case(case_name),
                                     .mode = "train"};
  return judge_step_updates(candidate, golden::load_training(golden, case_name));
}

std::string told(const StepUpdates& updates) {
  if (updates.diagnosis.defects.empty()) return "nothing";
  const harness::Defect& defect = updates.diagnosis.defects.front();
  return defect.name + ": " + defect.words;
}

void expect_named(const StepUpdates& updates, const std::string& name, const std::string& words) {
  std::printf("%-32s %s\n", name.c_str(), told(updates).c_str());
  ASSERT_EQ(updates.diagnosis.defects.size(), 1U) << name << ": " << told(updates);
  EXPECT_EQ(updates.diagnosis.defects.front().name, name) << told(updates);
  EXPECT_NE(told(updates).find(words), std::string::npos) << told(updates);
}

void expect_green(const StepUpdates& updates, size_t checks) {
  double worst = 0;
  size_t passed = 0;
  for (const harness::Verdict& verdict : updates.verdicts) {
    EXPECT_NE(verdict.trust, Trust::fail) << verdict.tap << " " << verdict.margin();
    passed += verdict.trust == Trust::pass ? 1 : 0;
    worst = std::max(worst, verdict.margin());
  }
  EXPECT_GE(passed, checks);
  EXPECT_TRUE(updates.diagnosis.defects.empty()) << told(updates);
  std::printf("clean: %zu of %zu checks pass, worst %.3g of limit\n", passed,
              updates.verdicts.size(), worst);
}

namespace {

/// A first step of AdamW does not show it.
bool right_at_first(const harness::Rule& rule) {
  return rule.reduce == harness::mean_gradient && rule.counted_before == 0 && rule.corrects_bias &&
         rule.decays && !rule.decay_in_gradient && rule.sign == 1;
}

bool same_gradients(const harness::Parts& a, const harness::Parts& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].gradients != b[i].gradients) return false;
  return true;
}

}  // namespace

Trace by_rule(const Case& c, const golden::TrainingGolden& golden, const harness::Rule& rule,
              const Change& change) {
  const harness::StepRecipe recipe =
      harness::read_step_recipe(golden.attributes.at("recipe"), "golden");
  const auto weights = harness::step_weights(c, golden.parameter_names);
  harness::StepOptimizer optimizer(recipe, rule);
  Trace trace;
  bool right_so_far = true;
  for (int64_t t = 0; t < 2; ++t) {
    // As the judge: weights that a wrong step has moved make choices of their own.
    const Trace* decisions = right_so_far ? &golden.decisions.at(static_cast<size_t>(t)) : nullptr;
    harness::Parts parts = step_gradients(c, recipe, decisions, t, *weights);
    harness::Tensors read;
    for (const std::string& name : golden.parameter_names) read[name] = weights->at(name);
    const harness::Parts right = parts;
    if (change) change(t, parts, read);
    right_so_far = right_at_first(rule) && same_gradients(right, parts);
    for (const auto& [name, values] : optimizer.step(parts, read).values) {
      const HostTensor update =
          HostTensor::from_doubles(DType::float32, *trained_shape(c.config, name), values);
      weights->add(name, update);
      trace.put(step_name(t, "update", name), update);
    }
  }
  return trace;
}

}  // namespace dsv32::suites
