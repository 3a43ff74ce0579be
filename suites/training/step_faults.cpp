// What a training step does after the gradients: faults of the trainer, the optimizer and the
// reduction, seen in the weights' updates, each to be named. And clean runs, which must stay green.

#include <gtest/gtest.h>

#include <cstdio>

#include "harness/training/side.h"
#include "harness/training/step/rules.h"
#include "harness/training/step/updates.h"
#include "harness/training/train_candidate.h"
#include "src/bridge/bridge.h"
#include "src/io/io.h"
#include "src/model/check_name.h"

namespace dsv32::suites {
namespace {

using harness::Candidate;
using harness::StepRecipe;
using harness::StepUpdates;
using harness::Tensors;
using harness::Trust;
using training::Bug;

/// The recipe of loss_descent, as its suite has it.
training::Recipe loss_descent() {
  training::Group group{.name = "all", .clip = 1.0};
  group.takes = [](const std::string& name) { return !is_indexer(name); };
  return {.name = "loss_descent", .groups = {group}, .steps = 50};
}

Candidate candidate_of(const Case& c, Trace trace) {
  trace.metadata["dtype"] = "float32";
  return {.path = "mine", .trace = std::move(trace), .the_case = c, .mode = "train"};
}

/// Two steps of our trainer in float32 with a bug in it.
Trace two_steps(const Case& c, Bug bug) {
  const harness::TrainingJob job{.the_case = c};
  harness::TrainingSide side(job, loss_descent(), {.name = "mine", .bug = bug});
  Trace trace;
  for (int64_t t = 0; t < 2; ++t) {
    const training::TensorTable before = side.parameters().clone();
    side.step(t);
    for (const std::string& name : before.names())
      trace.put(step_name(t, "update", name),
                to_host(side.parameters().at(name) - before.at(name), DType::float32));
  }
  return trace;
}

StepUpdates judged(const std::string& case_name, const std::string& golden, Trace trace) {
  return judge_step_updates(candidate_of(io::find_case(case_name), std::move(trace)),
                            golden::load_training(golden, case_name));
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

void expect_green(const StepUpdates& updates) {
  double worst = 0;
  for (const harness::Verdict& verdict : updates.verdicts) {
    EXPECT_EQ(verdict.trust, Trust::pass) << verdict.tap << " " << verdict.margin();
    worst = std::max(worst, verdict.margin());
  }
  EXPECT_GT(updates.verdicts.size(), 100U);
  EXPECT_TRUE(updates.diagnosis.defects.empty()) << told(updates);
  std::printf("clean: worst %.3g of limit\n", worst);
}

TEST(StepFaults, ACleanTrainingIsGreen) {
  const Case c = io::find_case("tiny-wide");
  expect_green(judged("tiny-wide", "loss_descent", two_steps(c, Bug::none)));
}

TEST(StepFaults, BugsOfTheTrainerAreNamed) {
  const Case c = io::find_case("tiny-wide");
  const std::map<Bug, std::string> rows = {{Bug::no_bias_correction, "bias-correction-missing"},
                                           {Bug::betas_swapped, "betas-exchanged"},
                                           {Bug::l2_decay, "weight-decay-in-gradient"},
                                           {Bug::gradients_not_zeroed, "gradients-not-zeroed"},
                                           {Bug::lr_1_05, "learning-rate-of-group"},
                                           {Bug::one_never_updated, "weights-not-updated"}};
  for (const auto& [bug, name] : rows)
    expect_named(judged("tiny-wide", "loss_descent", two_steps(c, bug)), name, "");
}

void scale(Trace& trace, const std::string& part, double factor) {
  for (const std::string name : std::vector<std::string>(trace.names())) {
    if (name.find(part) == std::string::npos) continue;
    std::vector<double> values = trace.find(name)->to_doubles();
    for (double& value : values) value *= factor;
    trace.put(name, HostTensor::from_doubles(DType::float32, trace.find(name)->shape(), values));
  }
}

TEST(StepFaults, AGroupWithAnotherRateIsNamed) {
  Trace trace = two_steps(io::find_case("tiny-wide"), Bug::none);
  scale(trace, "step.0.update.model.layers.1.mlp.experts.", 10);
  expect_named(judged("tiny-wide", "loss_descent", trace), "learning-rate-of-group",
               "updates x 10: the routed experts");
}

TEST(StepFaults, MastersFromBeforeLoadingAreNamed) {
  const Case c = io::find_case("tiny-wide");
  Trace trace = two_steps(c, Bug::none);
  const SyntheticWeights loaded(c), other(c.seed + 1, c.bias_offset);
  for (const WeightSpec& spec : weight_specs(c.config)) {
    const HostTensor* update = trace.find(step_name(0, "update", spec.name));
    if (update == nullptr || is_indexer(spec.name)) continue;
    const HostTensor from = loaded.load(spec), to = other.load(spec);
    std::vector<double> values = update->to_doubles();
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      values[i] += to.at(at) - from.at(at);
    }
    trace.put(step_name(0, "update", spec.name),
              HostTensor::from_doubles(DType::float32, spec.shape, values));
  }
  expect_named(judged("tiny-wide", "loss_descent", trace), "stale-master-weights",
               "master weights");
}

/// A first step of AdamW does not show it.
bool right_at_first(const harness::Rule& rule) {
  return rule.reduce == harness::mean_gradient && rule.counted_before == 0 && rule.corrects_bias &&
         rule.decays && !rule.decay_in_gradient && rule.sign == 1;
}

/// Updates by a rule on a golden's recipe, as a candidate would hand them in.
/// `second`: a factor on the gradients of step 1.
Trace by_rule(const Case& c, const golden::TrainingGolden& golden, const harness::Rule& rule,
              double second = 1) {
  const StepRecipe recipe = harness::read_step_recipe(golden.attributes.at("recipe"), "golden");
  const SyntheticWeights start(c);
  Tensors weights;
  for (const WeightSpec& spec : weight_specs(c.config))
    weights[spec.name] = start.load(spec).to_doubles();
  struct Now : WeightSource {
    explicit Now(const Tensors& values) : values(values) {}
    HostTensor load(const WeightSpec& spec) const override {
      return HostTensor::from_doubles(DType::float64, spec.shape, values.at(spec.name));
    }
    std::string identity() const override { return "test"; }
    const Tensors& values;
  } const now(weights);
  harness::StepOptimizer optimizer(recipe, rule);
  Trace trace;
  for (int64_t t = 0; t < 2; ++t) {
    // As the judge: weights that a wrong step has moved make choices of their own.
    const bool same = t == 0 || right_at_first(rule);
    const Trace* decisions = same ? &golden.decisions.at(static_cast<size_t>(t)) : nullptr;
    auto parts = step_gradients(c, recipe, decisions, t, now, golden.parameter_names);
    for (harness::PartGradients& part : parts)
      for (auto& [name, values] : part.gradients)
        for (double& value : values) value *= t == 1 ? second : 1;
    for (const auto& [name, values] : optimizer.step(parts, weights).values) {
      const HostTensor update =
          HostTensor::from_doubles(DType::float32, *weight_shape(c.config, name), values);
      for (size_t i = 0; i < values.size(); ++i)
        weights[name][i] += update.at(static_cast<int64_t>(i));
      trace.put(step_name(t, "update", name), update);
    }
  }
  return trace;
}

/// What is lost on the way between ranks and micro-batches needs some; all else shows with one.
TEST(StepFaults, EachOfTheTableIsNamed) {
  for (const harness::StepFault& fault : harness::step_faults()) {
    const bool reduced = fault.rule.reduce != harness::mean_gradient;
    const std::string name = reduced ? "tiny-shard" : "tiny-wide";
    const std::string suite = reduced ? "sharded_accum3" : "loss_descent";
    const golden::TrainingGolden golden = golden::load_training(suite, name);
    expect_named(judged(name, suite, by_rule(io::find_case(name), golden, fault.rule)), fault.name,
                 fault.words);
  }
}

TEST(StepFaults, ACleanShardedTrainingIsGreen) {
  const golden::TrainingGolden golden = golden::load_training("sharded_accum3", "tiny-shard");
  expect_green(
      judged("tiny-shard", "sharded_accum3", by_rule(io::find_case("tiny-shard"), golden, {})));
}

TEST(StepFaults, AClipFactorOfItsOwnIsTold) {
  const Case c = io::find_case("tiny-shard");
  const golden::TrainingGolden golden = golden::load_training("sharded_accum3", "tiny-shard");
  const Trace trace = by_rule(c, golden, {.clip = harness::ClipBy::none}, 0.25);
  expect_named(judged("tiny-shard", "sharded_accum3", trace), "clip-factor",
               "over that of step 0 is 0.25");
}

TEST(StepFaults, AnUpdateOfTheWrongShapeIsRefused) {
  Trace trace = two_steps(io::find_case("tiny-wide"), Bug::none);
  trace.put("step.0.update.model.norm.weight", HostTensor(DType::float32, {3}));
  EXPECT_THROW(judged("tiny-wide", "loss_descent", trace), Error);
}

}  // namespace
}  // namespace dsv32::suites
