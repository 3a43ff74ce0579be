// Single steps of a training whose weights are stored in bfloat16: with float32 masters behind
// them, without, and rounded stochastically. Each is green, and faults of the step are named.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <functional>

#include "harness/training/side.h"
#include "src/bridge/bridge.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "src/model/philox.h"
#include "suites/training/step_kit.h"

namespace dsv32::suites {
namespace {

using harness::StepUpdates;
using training::Bug;

constexpr char kCase[] = "tiny-wide", kSuite[] = "loss_descent";

enum class Keeping { masters, nearest, stochastic };
constexpr Keeping kAll[] = {Keeping::masters, Keeping::nearest, Keeping::stochastic};
const char* name_of(Keeping keeping) {
  if (keeping == Keeping::masters) return "float32 masters";
  return keeping == Keeping::nearest ? "rounded to nearest" : "rounded stochastically";
}

training::Recipe recipe_of(std::optional<double> clip = 1.0) {
  training::Group group{.name = "all", .clip = clip};
  group.takes = [](const std::string& name) { return !is_indexer(name); };
  return {.name = kSuite, .groups = {group}, .steps = 50};
}

torch::Tensor as_bfloat16(const torch::Tensor& value) {
  return value.to(torch::kBFloat16).to(torch::kFloat32);
}

/// To one of the two neighbours, the nearer one more often, so that the mean is the value.
torch::Tensor at_random(const torch::Tensor& value, PhiloxStream& stream) {
  torch::Tensor bits = value.contiguous().clone().view(torch::kInt32);
  int32_t* at = bits.data_ptr<int32_t>();
  for (int64_t i = 0; i < bits.numel(); i += 4) {
    const auto block = stream.block(static_cast<uint64_t>(i / 4));
    for (int64_t j = i; j < std::min(i + 4, bits.numel()); ++j)
      at[j] = static_cast<int32_t>(
                  static_cast<uint32_t>(at[j]) +
                  (static_cast<uint32_t>(block[static_cast<size_t>(j - i)]) & 0xFFFFU)) &
              static_cast<int32_t>(0xFFFF0000U);
  }
  return bits.view(torch::kFloat32);
}

/// How far a weight goes of the way that it should.
using Factor = std::function<double(const std::string& name)>;

/// Two free steps of our trainer, whose model reads and computes in bfloat16.
/// `second`: a factor on the gradients of the second step.
Trace two_steps(Keeping keeping, const training::Recipe& recipe, Bug bug, const Factor& factor,
                double second) {
  const harness::TrainingJob job{.the_case = io::find_case(kCase)};
  harness::TrainingSide side(job, recipe, {.name = "mine", .dtype = DType::bfloat16, .bug = bug});
  const torch::NoGradGuard no_grad;
  Trace trace;
  trace.metadata["dtype"] = "bfloat16";
  training::TensorTable& table = side.trainables().table();
  for (int64_t t = 0; t < 2; ++t) {
    const training::TensorTable before = table.clone();
    {
      const torch::AutoGradMode enabled(true);
      training::StepRecord record = side.trainer().measure(t);
      const torch::NoGradGuard still;
      for (const std::string& name : record.gradients.names())
        record.gradients.at(name).mul_(t == 1 ? second : 1);
      side.trainer().apply(record);
    }
    for (const std::string& name : table.names()) {
      const torch::Tensor& now = table.at(name);
      if (factor) now.copy_(before.at(name) + (now - before.at(name)) * factor(name));
      PhiloxStream stream(static_cast<uint64_t>(t), "stochastic." + name);
      if (keeping == Keeping::nearest) now.copy_(as_bfloat16(now));
      if (keeping == Keeping::stochastic) now.copy_(at_random(now, stream));
      trace.put(step_name(t, "update", name),
                to_host(as_bfloat16(now) - as_bfloat16(before.at(name)), DType::float32));
    }
  }
  return trace;
}

StepUpdates judged_of(Keeping keeping, const training::Recipe& recipe, Bug bug = Bug::none,
                      const Factor& factor = {}, double second = 1) {
  return judged(kCase, kSuite, two_steps(keeping, recipe, bug, factor, second));
}

void print_largest(Keeping keeping, const StepUpdates& updates) {
  std::map<std::string, double> largest;
  for (const harness::Verdict& verdict : updates.verdicts)
    for (const harness::Measure& measure : verdict.measures) {
      const bool all = check_of(verdict.tap).of.empty();
      double& value = largest[std::string(all ? "all: " : "one: ") + measure.metric];
      value = std::max(value, measure.measured);
    }
  std::printf("%s:", name_of(keeping));
  for (const auto& [metric, value] : largest) std::printf("  %s %.3g", metric.c_str(), value);
  std::printf("\n");
}

TEST(StepNarrow, CleanTrainersAreGreen) {
  for (const Keeping keeping : kAll) {
    const StepUpdates updates = judged_of(keeping, recipe_of());
    print_largest(keeping, updates);
    expect_green(updates);
  }
}

TEST(StepNarrow, FaultsAreNamedForEachTrainer) {
  const Factor faster = [](const std::string& name) {
    return name.find(".mlp.experts.") != std::string::npos ? 10.0 : 1.0;
  };
  const Factor still = [](const std::string& name) {
    return name.ends_with("layers.1.self_attn.o_proj.weight") ? 0.0 : 1.0;
  };
  const Factor backwards = [](const std::string&) { return -1.0; };
  for (const Keeping keeping : kAll) {
    std::printf("%s\n", name_of(keeping));
    for (const auto& [ratio, words] : {std::pair(0.1, "is too small"), {10.0, "is too large"}})
      expect_named(judged_of(keeping, recipe_of(std::nullopt), Bug::none, {}, ratio), "clip-factor",
                   words);
    expect_named(judged_of(keeping, recipe_of(), Bug::none, backwards), "gradient-sign", "");
    expect_named(judged_of(keeping, recipe_of(), Bug::none, faster), "learning-rate-of-group",
                 "updates x 10: the routed experts");
    expect_named(judged_of(keeping, recipe_of(), Bug::none, still), "weights-not-updated",
                 "exactly zero: the attention (1 of");
    expect_named(judged_of(keeping, recipe_of(), Bug::no_bias_correction),
                 "bias-correction-missing", "");
    expect_named(judged_of(keeping, recipe_of(), Bug::gradients_not_zeroed), "gradients-not-zeroed",
                 "");
  }
}

}  // namespace
}  // namespace dsv32::suites
