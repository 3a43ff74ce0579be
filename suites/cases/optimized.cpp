// The optimized model as a whole: its two attention forms, checkpointing, repeated runs, the CUDA
// kernels in the executor, what it refuses and what it does not promise.

#include "src/optimized/optimized.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "harness/cases/case_run.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/optimized/model/model.h"
#include "suites/kit/case_report.h"

namespace dsv32::suites {
namespace {

using optimized::AttentionForm;
using optimized::Kernels;
using optimized::OptimizedOptions;

/// A case, its batch and weights.
struct World {
  explicit World(const std::string& name, Objective objective = {})
      : run(io::find_case(name), true, {}, objective) {}

  Trace trace(const OptimizedOptions& how, RunOptions options = {}) const {
    options.objective = run.objective();
    return optimized::make_optimized(run.the_case().config, run.weights(), how)
        ->run(run.batch(), options);
  }
  Trace backward(const OptimizedOptions& how, DType dtype = DType::float32) const {
    return trace(how, {.dtype = dtype, .backward = run.backward()});
  }
  std::string judged(const Trace& trace, DType dtype = DType::float32) const {
    harness::JudgedTrace judged{
        .subject = {.party = harness::Party::optimized, .label = "optimized"},
        .impl = "optimized",
        .dtype = dtype,
        .trace = &trace};
    if (dtype == DType::bfloat16) judged.dialect.rounding = RoundingStyle::transformers;
    return complaints(run.judge_subject(judged));
  }

  harness::CaseRun run;
};

/// Names of the tensors that differ in a bit or are not there.
std::string different(const Trace& a, const Trace& b) {
  std::string names;
  for (const std::string& name : a.names()) {
    const HostTensor *x = a.find(name), *y = b.find(name);
    const bool same = y != nullptr && x->bytes() == y->bytes() &&
                      std::memcmp(x->raw(), y->raw(), static_cast<size_t>(x->bytes())) == 0;
    if (!same) names += name + " ";
  }
  return names;
}

class OptimizedCases : public testing::TestWithParam<const char*> {};

TEST_P(OptimizedCases, BothAttentionFormsAreRight) {
  const World world(GetParam());
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const AttentionForm form : {AttentionForm::expanded, AttentionForm::absorbed})
      EXPECT_EQ(world.judged(world.backward({.attention = form}, dtype), dtype), "");
}

TEST_P(OptimizedCases, CudaKernelsInTheExecutorAreRight) {
  const World world(GetParam());
  for (const AttentionForm form : {AttentionForm::expanded, AttentionForm::absorbed}) {
    const OptimizedOptions how{.kernels = Kernels::simt, .attention = form};
    EXPECT_EQ(world.judged(world.backward(how)), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, OptimizedCases,
                         testing::Values("tiny", "tiny-yarn", "tiny-wide", "tiny-bias",
                                         "tiny-dense", "tiny-short7", "tiny-chunk"));

class OptimizedObjectives : public testing::TestWithParam<Objective> {};

TEST_P(OptimizedObjectives, GradientsAreRight) {
  const World world("tiny-wide", GetParam());
  for (const Kernels kernels : {Kernels::library, Kernels::simt})
    for (const AttentionForm form : {AttentionForm::expanded, AttentionForm::absorbed})
      EXPECT_EQ(world.judged(world.backward({.kernels = kernels, .attention = form})), "");
}

INSTANTIATE_TEST_SUITE_P(Kl, OptimizedObjectives,
                         testing::Values(Objective{.lm = false, .kl = KlStage::warmup},
                                         Objective{.lm = false, .kl = KlStage::sparse},
                                         Objective{
                                             .lm = true, .kl = KlStage::sparse, .kl_weight = 0.1}));

TEST(OptimizedModel, CheckpointingDoesNotChangeABit) {
  const World world("tiny-wide", {.lm = true, .kl = KlStage::sparse, .kl_weight = 0.1});
  for (const DType dtype : {DType::float32, DType::bfloat16})
    EXPECT_EQ(different(world.backward({.checkpointing = true}, dtype),
                        world.backward({.checkpointing = false}, dtype)),
              "");
}

TEST(OptimizedModel, EveryRunGivesTheSameBits) {
  const World world("tiny-wide");
  for (const Kernels kernels : {Kernels::library, Kernels::simt}) {
    const Trace first = world.backward({.kernels = kernels});
    EXPECT_FALSE(first.empty());
    EXPECT_EQ(different(first, world.backward({.kernels = kernels})), "");
  }
}

std::string refusal(const World& world, const RunOptions& options) {
  try {
    world.trace({}, options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(OptimizedModel, RefusesWhatItDoesNotCompute) {
  const World world("tiny");
  Dialect other;
  other.norm.eps_block = 1e-5;
  EXPECT_NE(refusal(world, {.dialect = other}).find("expected spec-1"), std::string::npos);
  EXPECT_NE(refusal(world, {.dtype = DType::float64}).find("expected float32 or bfloat16"),
            std::string::npos);
  EXPECT_NE(refusal(world, {.perturbation = 0.1}).find("perturbation"), std::string::npos);
}

TEST(OptimizedModel, SaysWhichSizeItsKernelsDoNotTake) {
  for (const Case& c : io::cases()) EXPECT_EQ(optimized::unsupported(c.config), "") << c.name;
  Case c = io::find_case("tiny");
  c.config.index_head_dim = 256;
  const std::string reason = "index_head_dim: expected at most 128, got 256";
  EXPECT_EQ(optimized::unsupported(c.config), reason);
  const harness::CaseRun run(c, false);
  try {
    run.run({}, "optimized", "optimized");
    FAIL() << "it ran";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
  }
}

/// Ops of the library that leave the choice to their caller.
std::set<std::string> ops_with_a_choice() {
  const std::string space = "dsv32::";
  std::set<std::string> ops;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (!name.name.starts_with(space)) continue;
    const auto& arguments =
        c10::Dispatcher::singleton().findSchemaOrThrow(name.name.c_str(), "").schema().arguments();
    if (std::any_of(arguments.begin(), arguments.end(),
                    [](const c10::Argument& a) { return a.name() == "deterministic"; }))
      ops.insert(name.name.substr(space.size()));
  }
  return ops;
}

TEST(OptimizedModel, NamesEveryOpThatDoesNotPromiseItsBits) {
  std::set<std::string> named;
  for (const optimized::UnpromisedBits& entry : optimized::unpromised_bits())
    if (!entry.op.starts_with("at::")) named.insert(entry.op);
  EXPECT_FALSE(named.empty());
  EXPECT_EQ(named, ops_with_a_choice());
}

}  // namespace
}  // namespace dsv32::suites
