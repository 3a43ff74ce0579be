// FP8 weights and fp8 mode: clean runs pass, and every fault of scales, codes and activations is
// caught at its first tap.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "harness/cases/case_run.h"
#include "harness/cases/diagnosis.h"
#include "harness/cases/implementations.h"
#include "src/io/io.h"

namespace dsv32::suites {
namespace {

using harness::CaseRun;
using harness::JudgedTrace;
using harness::Verdict;

/// One dense layer and one of experts.
const Case& plain_case() {
  static const Case c = [] {
    Case two_layers = io::find_case("tiny-fp8");
    two_layers.config.num_hidden_layers = 2;
    return two_layers;
  }();
  return c;
}

/// The same under scales that are powers of two.
const Case& powers_case() {
  static const Case c = [] {
    Case powers = plain_case();
    powers.config.fp8->scale_fmt = "ue8m0";
    return powers;
  }();
  return c;
}

/// Runs whose values spread so far that powers of two do not hide their width.
const Case& lanes_case() {
  static const Case c = [] {
    Case lanes = io::find_case("o128-lanes");
    lanes.fp8 = true;
    lanes.config.fp8.emplace();
    return lanes;
  }();
  return c;
}

JudgedTrace judged_in(DType mode, const Trace& trace, const Dialect& declared = {}) {
  return {.subject = {.label = "candidate"},
          .dtype = stored_type(mode),
          .dialect = in_dtype(declared, mode),
          .trace = &trace,
          .is_file = true};
}

std::string failure_of(const std::vector<Verdict>& verdicts) {
  const Verdict* failure = harness::first_failure(verdicts);
  return failure == nullptr ? "" : failure->tap;
}

// --- clean --------------------------------------------------------------------------------------

TEST(SelfFp8Mode, CleanRunsOfEveryImplementationPass) {
  for (const Case* c : {&plain_case(), &powers_case(), &lanes_case()}) {
    const CaseRun run(*c, false);
    for (const char* impl : {"reference", "optimized"}) {
      const Trace trace = run.run({.dtype = DType::bfloat16, .dialect = in_dtype({}, DType::fp8)},
                                  "candidate", impl);
      JudgedTrace judged = judged_in(DType::fp8, trace);
      judged.is_file = false;
      judged.impl = impl;
      EXPECT_EQ(failure_of(run.judge_subject(judged)), "") << impl << " " << c->config_name;
    }
  }
}

TEST(SelfFp8Mode, KernelsInTheExecutorPass) {
  const CaseRun run(powers_case(), false);
  const Trace trace = run.run({.dtype = DType::bfloat16, .dialect = in_dtype({}, DType::fp8)},
                              "candidate", "optimized-simt");
  JudgedTrace judged = judged_in(DType::fp8, trace);
  judged.impl = "optimized-simt";
  EXPECT_EQ(failure_of(run.judge_staged(judged)), "");
}

TEST(SelfFp8Mode, QuantisedActivationsAreFarFromBf16) {
  const CaseRun run(plain_case(), false);
  const Trace trace = run.run({.dtype = DType::bfloat16}, "candidate");
  EXPECT_EQ(failure_of(run.judge_staged(judged_in(DType::bfloat16, trace))), "");
  EXPECT_NE(failure_of(run.judge_staged(judged_in(DType::fp8, trace))), "");
}

TEST(SelfFp8Mode, OnlySixteenBitsQuantise) {
  const Dialect release = find_dialect("off-v32");
  EXPECT_TRUE(in_dtype(release, DType::bfloat16).fp8.latent);
  EXPECT_FALSE(in_dtype(release, DType::bfloat16).fp8.linear);
  EXPECT_EQ(in_dtype(release, DType::float32).fp8, Fp8Variant{});
  EXPECT_TRUE(in_dtype({}, DType::fp8).fp8.linear);
}

TEST(SelfFp8Mode, TheReleaseInBf16PassesWhenDeclared) {
  const CaseRun run(io::find_case("tiny-wide"), false);
  const Dialect release = find_dialect("off-v32");
  const Trace trace = run.run({.dtype = DType::bfloat16, .dialect = release}, "candidate");
  EXPECT_EQ(failure_of(run.judge_subject(judged_in(DType::bfloat16, trace, release))), "");
  const JudgedTrace undeclared = judged_in(DType::bfloat16, trace);
  const std::vector<Verdict> verdicts = run.judge_subject(undeclared);
  EXPECT_EQ(failure_of(verdicts), "layers.0.kv_latent");
  const harness::Diagnosis diagnosis = harness::diagnose(run, undeclared, verdicts);
  ASSERT_FALSE(diagnosis.causes.empty());
  EXPECT_TRUE(diagnosis.causes.front().starts_with("matches dialect off-v32")) << diagnosis.profile;
}

// --- what a wrong implementation does -----------------------------------------------------------

/// A toggle, the case that shows it, and the dtype of the candidate.
struct Planted {
  std::string toggle;
  const Case& (*shown_by)();
  DType mode;
  std::string first_tap;
};

const std::vector<Planted>& planted() {
  static const std::vector<Planted> all = {
      {"latent-fp8", plain_case, DType::bfloat16, "kv_latent"},
      {"indexer-fp8", plain_case, DType::bfloat16, "ix.scores"},
      {"plain-scale", powers_case, DType::fp8, "q_latent"},
      {"fp8-input-exact", plain_case, DType::fp8, "q_latent"},
      {"fp8-scale-below", powers_case, DType::fp8, "q_latent"},
      {"fp8-unrotated", plain_case, DType::fp8, "ix.scores"},
      {"fp8-half-runs", plain_case, DType::fp8, "q_latent"},
      {"fp8-half-runs", lanes_case, DType::fp8, "q_nope"},
  };
  return all;
}

TEST(SelfFp8Mode, EveryToggleIsCaughtAndNamed) {
  for (const Planted& p : planted()) {
    SCOPED_TRACE(p.toggle);
    const CaseRun run(p.shown_by(), false);
    Dialect dialect = in_dtype({}, p.mode);
    for (const KnownBug& toggle : fp8_toggles())
      if (toggle.name == p.toggle) toggle.plant(dialect);
    const Trace trace = run.run({.dtype = DType::bfloat16, .dialect = dialect}, "mutant");
    const JudgedTrace judged = judged_in(p.mode, trace);
    const std::vector<Verdict> verdicts = run.judge_subject(judged);
    const Verdict* failure = harness::first_failure(verdicts);
    ASSERT_NE(failure, nullptr);
    EXPECT_EQ(tap_stem(failure->tap), p.first_tap);
    bool named = false;
    for (const harness::Defect& defect : harness::diagnose(run, judged, verdicts).defects)
      named = named || (" " + defect.name + " ").find(" " + p.toggle + " ") != std::string::npos;
    EXPECT_TRUE(named);
  }
}

TEST(SelfFp8Mode, EveryToggleIsInTheTable) {
  for (const KnownBug& toggle : fp8_toggles()) {
    const auto is = [&](const Planted& p) { return p.toggle == toggle.name; };
    EXPECT_TRUE(std::any_of(planted().begin(), planted().end(), is)) << toggle.name;
    EXPECT_EQ(find_dialect(toggle.name).name, toggle.name);
  }
}

// --- what a wrong checkpoint does ---------------------------------------------------------------

/// The case's weights with one matrix changed, or read in another way.
class FaultyWeights : public SyntheticWeights {
 public:
  using Fault = std::function<void(Fp8Matrix&)>;
  FaultyWeights(const Case& c, std::string ending, Fault fault)
      : SyntheticWeights(c), ending_(std::move(ending)), fault_(std::move(fault)) {}

  HostTensor load(const WeightSpec& spec) const override {
    const auto matrix = load_fp8(spec);
    return matrix ? dequantized(*matrix) : SyntheticWeights::load(spec);
  }
  std::optional<Fp8Matrix> load_fp8(const WeightSpec& spec) const override {
    auto matrix = SyntheticWeights::load_fp8(spec);
    if (matrix && spec.name.ends_with(ending_)) fault_(*matrix);
    return matrix;
  }

 private:
  std::string ending_;
  Fault fault_;
};

struct FileFault {
  std::string name, weight, first_tap;
  FaultyWeights::Fault plant;
};

std::vector<FileFault> file_faults() {
  const auto scale = [](int64_t block, std::function<float(float)> change) {
    return [=](Fp8Matrix& m) {
      float& value = m.scales.data<float>()[block];
      value = change(value);
    };
  };
  const auto every_scale = [](std::function<float(float)> change) {
    return [=](Fp8Matrix& m) {
      for (float& value : m.scales.data<float>()) value = change(value);
    };
  };
  return {
      {"scale of one block doubled", "1.self_attn.q_a_proj.weight", "q_latent",
       scale(7, [](float s) { return 2 * s; })},
      {"scale of one block not applied", "1.self_attn.kv_a_proj_with_mqa.weight", "kv_latent",
       scale(3, [](float) { return 1.0f; })},
      {"scales lose their mantissa", "0.self_attn.q_b_proj.weight", "q_nope",
       every_scale([](float s) { return std::exp2(std::floor(std::log2(s))); })},
      {"no scale at all", "0.self_attn.indexer.wk.weight", "ix.k",
       every_scale([](float) { return 1.0f; })},
      {"scales of the neighbours", "1.self_attn.o_proj.weight", "attn.out",
       [](Fp8Matrix& m) {
         const auto values = m.scales.data<float>();
         std::rotate(values.begin(), values.begin() + 1, values.end());
       }},
      {"one expert's scale doubled", "1.mlp.experts.4.down_proj.weight", "moe.routed",
       scale(5, [](float s) { return 2 * s; })},
      {"the shared expert's scale of zero", "1.mlp.shared_experts.up_proj.weight", "moe.shared",
       scale(0, [](float) { return 0.0f; })},
      {"one code flipped in its sign bit by rows", "0.mlp.gate_proj.weight", "mlp.out",
       [](Fp8Matrix& m) {
         const int64_t width = m.codes.shape()[1];
         for (int64_t i = 0; i < width; ++i) m.codes.data<uint8_t>()[i] ^= 0x80;
       }},
  };
}

TEST(SelfFp8Weights, EveryFaultOfAFileIsCaughtAtItsFirstTap) {
  const Case& c = plain_case();
  const CaseRun run(c, false);
  for (const FileFault& fault : file_faults()) {
    const FaultyWeights weights(c, fault.weight, fault.plant);
    for (const DType mode : {DType::float32, DType::bfloat16, DType::fp8}) {
      const Trace trace =
          harness::make_model("reference", c.config, weights)
              ->run(run.batch(), {.dtype = stored_type(mode), .dialect = in_dtype({}, mode)});
      const std::string tap = failure_of(run.judge_staged(judged_in(mode, trace)));
      EXPECT_EQ(tap.empty() ? "" : tap_stem(tap), fault.first_tap)
          << fault.name << " in " << to_string(mode);
    }
  }
}

/// A block size guessed as ceil(rows / rows of scales): 12 in place of 16 for 36 rows.
TEST(SelfFp8Weights, AGuessedBlockSizeIsCaught) {
  const Case& c = plain_case();
  const CaseRun run(c, false);
  const FaultyWeights weights(c, "1.self_attn.kv_a_proj_with_mqa.weight", [](Fp8Matrix& m) {
    m.block_rows = (m.codes.shape()[0] + m.scales.shape()[0] - 1) / m.scales.shape()[0];
    ASSERT_EQ(m.block_rows, 12);
  });
  const Trace trace = harness::make_model("reference", c.config, weights)
                          ->run(run.batch(), {.dtype = DType::float32});
  EXPECT_EQ(failure_of(run.judge_staged(judged_in(DType::float32, trace))), "layers.1.kv_latent");
}

}  // namespace
}  // namespace dsv32::suites
