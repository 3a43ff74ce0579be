// Single steps of a training of LoRA factors: each fault of their gradients to be named, from the
// updates alone.

#include <gtest/gtest.h>

#include "harness/cases/world.h"
#include "harness/training/lora_side.h"
#include "harness/training/step/weights.h"
#include "src/bridge/bridge.h"
#include "src/io/io.h"
#include "src/model/check_name.h"
#include "src/training/trainer.h"
#include "suites/training/step_kit.h"

namespace dsv32::suites {
namespace {

using harness::Parts;
using harness::Tensors;
using training::Bug;

constexpr char kCase[] = "tiny-wide";

/// Two steps of our trainer in float32, free, with a bug in it.
Trace two_steps(const std::string& golden, Bug bug) {
  const harness::TrainingJob job{.the_case = io::find_case(kCase)};
  const harness::LoraPlan plan{
      .golden = golden, .targets = {.experts = golden == "dual_lora_experts"}, .steps = 2};
  harness::LoraSide side(job, plan, {.name = "mine", .bug = bug});
  Trace trace;
  for (int64_t t = 0; t < 2; ++t) {
    const training::TensorTable before = side.parameters().clone();
    side.trainer().step(t);
    for (const std::string& name : before.names())
      trace.put(step_name(t, "update", name),
                to_host(side.parameters().at(name) - before.at(name), DType::float32));
  }
  return trace;
}

TEST(StepAdapters, ACleanTrainingIsGreen) {
  for (const char* golden : {"dual_lora", "dual_lora_experts"})
    expect_green(judged(kCase, golden, two_steps(golden, Bug::none)), 90);
}

TEST(StepAdapters, BugsOfTheTrainerAreNamed) {
  struct Row {
    Bug bug;
    const char *golden, *name, *words;
  };
  for (const Row& row : {
           Row{Bug::lora_one_lr, "dual_lora", "learning-rate-of-group",
               "updates x 0.1: the A factors of the indexer (all 6)"},
           Row{Bug::lora_target_ignored, "dual_lora", "weights-not-updated",
               "exactly zero: the A factors of the indexer (2 of 6)"},
           Row{Bug::lora_wrong_projection, "dual_lora", "factor-of-other-projection",
               "the B factors of the dense MLP (2 of 3)"},
           Row{Bug::lora_expert_columns, "dual_lora_experts", "factor-expert-columns",
               "the B factors of the routed experts (all 2)"},
           Row{Bug::lora_expert_halves, "dual_lora_experts", "factor-expert-halves",
               "the B factors of the routed experts (1 of 2)"},
       })
    expect_named(judged(kCase, row.golden, two_steps(row.golden, row.bug)), row.name, row.words);
}

/// Rank `rank` of `world` that split a layer by its rows: its part of the gradient of A.
std::vector<double> part_of_a(const Tensors& read, const harness::PartGradients& part,
                              const LoraModule& m, int64_t rank, int64_t world) {
  const std::vector<double>& b = read.at(m.b_name());
  const HostTensor& of_weight = *part.below.find("grad." + m.name + ".weight");
  std::vector<double> sum(static_cast<size_t>(m.rank * m.in), 0);
  for (int64_t row = rank * m.out / world; row < (rank + 1) * m.out / world; ++row)
    for (int64_t r = 0; r < m.rank; ++r)
      for (int64_t column = 0; column < m.in; ++column)
        sum[static_cast<size_t>(r * m.in + column)] += m.scale() *
                                                       b[static_cast<size_t>(row * m.rank + r)] *
                                                       of_weight.at(row * m.in + column);
  return sum;
}

/// By its columns: of B.
std::vector<double> part_of_b(const Tensors& read, const harness::PartGradients& part,
                              const LoraModule& m, int64_t rank, int64_t world) {
  const std::vector<double>& a = read.at(m.a_name());
  const HostTensor& of_weight = *part.below.find("grad." + m.name + ".weight");
  std::vector<double> sum(static_cast<size_t>(m.out * m.rank), 0);
  for (int64_t row = 0; row < m.out; ++row)
    for (int64_t r = 0; r < m.rank; ++r)
      for (int64_t column = rank * m.in / world; column < (rank + 1) * m.in / world; ++column)
        sum[static_cast<size_t>(row * m.rank + r)] += m.scale() *
                                                      of_weight.at(row * m.in + column) *
                                                      a[static_cast<size_t>(r * m.in + column)];
  return sum;
}

/// q_b is split by rows, o by columns; the factor that every rank holds keeps one rank's part.
Trace not_reduced(int64_t rank, int64_t world) {
  const Case c = io::find_case(kCase);
  const golden::TrainingGolden golden = golden::load_training("dual_lora", kCase);
  const auto keep_own = [&](int64_t, Parts& parts, const Tensors& read) {
    for (harness::PartGradients& part : parts)
      for (const LoraModule& m : lora_modules(c.config)) {
        if (m.name.ends_with(".q_b_proj"))
          part.gradients[m.a_name()] = part_of_a(read, part, m, rank, world);
        if (m.name.ends_with(".o_proj"))
          part.gradients[m.b_name()] = part_of_b(read, part, m, rank, world);
      }
  };
  return by_rule(c, golden, {}, keep_own);
}

TEST(StepAdapters, AFactorThatIsNotSummedOverTheRanksIsNamed) {
  for (const auto& [rank, world] : {std::pair(0, 2), {1, 2}, {0, 4}})
    expect_named(judged(kCase, "dual_lora", not_reduced(rank, world)), "factor-not-reduced",
                 "rank " + std::to_string(rank) + " of " + std::to_string(world));
}

TEST(StepAdapters, AFactorThatStaysZeroIsNamed) {
  Trace trace = two_steps("dual_lora", Bug::none);
  const std::string name = "model.layers.1.self_attn.o_proj.lora_B.weight";
  for (int64_t t = 0; t < 2; ++t) {
    const std::string tap = step_name(t, "update", name);
    trace.put(tap, HostTensor(DType::float32, trace.find(tap)->shape()));
  }
  expect_named(judged(kCase, "dual_lora", trace), "weights-not-updated",
               "exactly zero: the B factors of the attention (1 of 8)");
}

/// Two ranks that split q_b and o, each with its own part of the factors that both hold.
TEST(StepAdapters, FactorsThatDifferByRankAreNamedWithTheirRank) {
  const Case c = io::find_case(kCase);
  std::vector<harness::RankFile> files;
  for (int64_t rank = 0; rank < 2; ++rank) {
    harness::RankFile file{.path = "rank" + std::to_string(rank)};
    file.part.trace = not_reduced(rank, 2);
    file.part.trace.metadata = {{"case", kCase},      {"mode", "train"},
                                {"dtype", "float32"}, {"weights", "mine"},
                                {"mask", "given"},    {"rank", std::to_string(rank)},
                                {"world", "2"}};
    file.part.rank = rank;
    file.part.world = 2;
    files.push_back(std::move(file));
  }
  harness::JoinedWorld world = join_world(std::move(files), c, {.label = "mine"});
  ASSERT_EQ(world.verdicts.size(), 2U);
  EXPECT_EQ(world.verdicts.front().trust, harness::Trust::fail);
  EXPECT_NE(world.verdicts.front().note.find("o_proj.lora_B.weight of rank 1"), std::string::npos)
      << world.verdicts.front().note;
  expect_named(judged(kCase, "dual_lora", std::move(world.trace)), "factor-not-reduced",
               "rank 0 of 2");
}

}  // namespace
}  // namespace dsv32::suites
