// What a training step does after the gradients: faults of the trainer, the optimizer and the
// reduction, seen in the weights' updates, each to be named. And clean runs, which must stay green.

#include <gtest/gtest.h>

#include "harness/training/side.h"
#include "src/bridge/bridge.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "suites/training/step_kit.h"

namespace dsv32::suites {
namespace {

using training::Bug;

/// The recipe of loss_descent, as its suite has it.
training::Recipe loss_descent() {
  training::Group group{.name = "all", .clip = 1.0};
  group.takes = [](const std::string& name) { return !is_indexer(name); };
  return {.name = "loss_descent", .groups = {group}, .steps = 50};
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
  const auto quarter = [](int64_t t, harness::Parts& parts, const harness::Tensors&) {
    for (harness::PartGradients& part : parts)
      for (auto& [name, values] : part.gradients)
        for (double& value : values) value *= t == 1 ? 0.25 : 1;
  };
  const Trace trace = by_rule(c, golden, {.clip = harness::ClipBy::none}, quarter);
  expect_named(judged("tiny-shard", "sharded_accum3", trace), "clip-factor",
               "over that of step 0 is 0.25");
}

/// Rank 0's own gradients in place of the mean over the ranks, for some weights.
TEST(StepFaults, WeightsLeftOutOfTheReductionAreNamed) {
  const auto alone = [](int64_t, harness::Parts& parts, const harness::Tensors&) {
    harness::Parts own;
    for (const harness::PartGradients& part : parts)
      if (part.rank == 0) own.push_back(part);
    for (harness::PartGradients& part : parts)
      for (auto& [name, values] : part.gradients)
        if (name.find(".mlp.gate.weight") != std::string::npos)
          values = own[static_cast<size_t>(part.micro)].gradients.at(name);
  };
  const golden::TrainingGolden golden = golden::load_training("sharded_accum3", "tiny-shard");
  const Trace trace = by_rule(io::find_case("tiny-shard"), golden, {}, alone);
  expect_named(judged("tiny-shard", "sharded_accum3", trace), "rank-0-alone",
               "of rank 0 alone: the router (all 1)");
}

/// The objectives and the weights that move are the recipe's.
TEST(StepFaults, EveryRecipeOfOneOptimizerIsJudged) {
  const Case c = io::find_case("tiny-wide");
  for (const char* suite : {"loss_descent_memorised", "sft_frozen_indexer", "indexer_kl_warmup",
                            "indexer_kl_sparse", "indexer_kl_joint"}) {
    const golden::TrainingGolden golden = golden::load_training(suite, "tiny-wide");
    expect_green(judged("tiny-wide", suite, by_rule(c, golden, {})), golden.parameter_names.size());
    expect_named(judged("tiny-wide", suite, by_rule(c, golden, {.sign = -1})), "gradient-sign", "");
  }
}

TEST(StepFaults, AnUpdateOfTheWrongShapeIsRefused) {
  Trace trace = two_steps(io::find_case("tiny-wide"), Bug::none);
  trace.put("step.0.update.model.norm.weight", HostTensor(DType::float32, {3}));
  EXPECT_THROW(judged("tiny-wide", "loss_descent", trace), Error);
}

}  // namespace
}  // namespace dsv32::suites
