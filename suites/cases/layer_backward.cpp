// The backward pass of layers alone, against that of the whole model; bugs planted in one of them.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "harness/cases/gradient_patterns.h"
#include "harness/cases/implementations.h"
#include "harness/cases/layers/run.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "src/io/io.h"
#include "suites/kit/own_subject.h"

namespace dsv32::suites {
namespace {

using harness::CaseRun;
using harness::JudgedTrace;
using harness::LayerRunOptions;
using harness::Trust;
using harness::Verdict;

constexpr char kHidden[] = "hidden";

/// What one layer gives back.
struct LayerGradients {
  Trace gradients;
  HostTensor input;  // the gradient by the stream before the layer
};

/// One layer of an implementation forth and back, segment by segment, its experts in two parts.
class OneLayer {
 public:
  OneLayer(const CaseRun& run, std::string impl, DType dtype, const Trace& whole, int64_t layer)
      : run_(run), impl_(std::move(impl)), dtype_(dtype), whole_(whole), layer_(layer) {
    for (const std::string& name : whole.names())
      if (is_decision(name) && parse_tap(name)->layer == layer)
        decisions_.put(name, *whole.find(name));
  }

  LayerGradients back() {
    StreamState stream = {
        {kHidden, *whole_.find(layer_ == 0 ? "embed" : layer_tap(layer_ - 1, kHidden))}};
    const StreamState before = stream;
    forth(SegmentKind::attention, stream);
    StreamState gradient = {{kHidden, whole_.slopes.at(layer_tap(layer_, kHidden))}};
    const int64_t experts = run_.the_case().config.n_routed_experts;
    if (!run_.the_case().config.is_dense_mlp(layer_))
      for (const ExpertRange range : {ExpertRange{0, 3}, ExpertRange{3, experts}})
        part(SegmentKind::mlp, stream, gradient, range);
    part(SegmentKind::mlp, stream, gradient, {});
    part(SegmentKind::attention, before, gradient, {});
    return {std::move(gradients_), gradient.at(kHidden)};
  }

 private:
  RunOptions options(SegmentKind kind) const {
    return {.dtype = dtype_,
            .feeding = Feeding::forced,
            .feed = &decisions_,
            .segment = Segment{kind, layer_}};
  }
  void forth(SegmentKind kind, StreamState& stream) const {
    RunOptions o = options(kind);
    o.stream = &stream;
    run_.run(o, "forth", impl_);
  }
  void part(SegmentKind kind, StreamState stream, StreamState& gradient,
            std::optional<ExpertRange> experts) {
    RunOptions o = options(kind);
    o.backward = true;
    o.stream = &stream;
    o.gradient = &gradient;
    o.experts = experts;
    const Trace trace = run_.run(o, "back", impl_);
    for (const std::string& name : trace.names()) {
      EXPECT_FALSE(gradients_.has(name)) << name;
      gradients_.put(name, *trace.find(name));
    }
  }

  const CaseRun& run_;
  std::string impl_;
  DType dtype_;
  const Trace& whole_;
  int64_t layer_;
  Trace decisions_, gradients_;
};

void expect_alike(const HostTensor& got, const HostTensor& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  double error = 0, size = 0;
  for (int64_t i = 0; i < want.numel(); ++i) {
    error += (got.at(i) - want.at(i)) * (got.at(i) - want.at(i));
    size += want.at(i) * want.at(i);
  }
  if (size == 0) {
    EXPECT_EQ(error, 0) << what;
    return;
  }
  EXPECT_TRUE(
      harness::by_limit("pair.relative", {.dtype = want.dtype()}, std::sqrt(error / size)).within())
      << what << " " << std::sqrt(error / size);
}

class AloneAndInTheModel : public testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(AloneAndInTheModel, GiveTheSameGradients) {
  const auto [impl, dtype] = GetParam();
  const CaseRun run(io::find_case("tiny-wide"));
  const ModelConfig& config = run.the_case().config;
  const Trace whole = run.run({.dtype = dtype, .backward = true, .slopes = true}, "whole", impl);
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const LayerGradients alone = OneLayer(run, impl, dtype, whole, layer).back();
    const std::vector<std::string> expected = layer_gradient_taps(config, layer);
    EXPECT_EQ(alone.gradients.names().size(), expected.size());
    for (const std::string& name : expected) {
      ASSERT_TRUE(alone.gradients.has(name)) << name;
      expect_alike(*alone.gradients.find(name), *whole.find(name), name);
    }
    const std::string before = layer == 0 ? "embed" : layer_tap(layer - 1, kHidden);
    expect_alike(alone.input, whole.slopes.at(before), before);
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, AloneAndInTheModel,
                         testing::Values(std::tuple("reference", DType::float64),
                                         std::tuple("reference", DType::float32),
                                         std::tuple("optimized", DType::float32)));

// --- judged -------------------------------------------------------------------------------------

std::vector<Verdict> verdicts_of(const CaseRun& run, const JudgedTrace& subject,
                                 const std::string& words, bool twins = true) {
  const LayerRunOptions options{.selection = harness::parse_layers(words, run.the_case().config),
                                .forward = false,
                                .backward = true,
                                .twins = twins};
  return harness::judge_layers(run, {subject}, options).front().verdicts;
}

std::string failures(const std::vector<Verdict>& verdicts) {
  std::string text;
  for (const Verdict& v : verdicts) {
    if (v.trust == Trust::pass) continue;
    text += v.tap + " " + std::string(to_string(v.trust)) + " " + v.note;
    for (const harness::Measure& m : v.measures)
      if (!m.within())
        text += " " + m.metric + " " + std::to_string(m.measured) + " > " + std::to_string(m.limit);
    text += "\n";
  }
  return text;
}

class LayersBack : public testing::TestWithParam<std::tuple<std::string, DType>> {};

TEST_P(LayersBack, OfBothKindsAreJudgedAndRight) {
  const auto [impl, dtype] = GetParam();
  const CaseRun run(io::find_case("tiny-wide"), false);
  const ModelConfig& config = run.the_case().config;
  const std::vector<Verdict> verdicts = verdicts_of(run, own(impl, dtype), "0,1");
  EXPECT_EQ(failures(verdicts), "");
  std::set<std::string> names;
  for (const Verdict& v : verdicts) names.insert(v.tap);
  for (const int64_t layer : {0, 1})
    for (const std::string& name : layer_gradient_taps(config, layer))
      EXPECT_EQ(names.erase(name), 1U) << name;
  for (const char* stream :
       {"dtap.layers.1.attn.out", "dtap.layers.0.hidden", "dtap.layers.0.attn.out", "dtap.embed"})
    EXPECT_EQ(names.erase(stream), 1U) << stream;
  names.erase("selection.exercised");
  EXPECT_EQ(names, std::set<std::string>());
}

INSTANTIATE_TEST_SUITE_P(Tiny, LayersBack,
                         testing::Combine(testing::Values("reference", "optimized"),
                                          testing::Values(DType::float32, DType::bfloat16)));

/// The reference with a bug in one layer's backward pass, judged as anybody's implementation.
JudgedTrace mutant(int64_t layer, const std::function<void(Dialect&)>& plant) {
  JudgedTrace judged = own("reference", DType::float32);
  judged.subject = {.label = "mutant"};
  judged.against_reference = true;
  plant(judged.backward_dialects[layer]);
  return judged;
}

struct Planted {
  const char* name;
  int64_t layer;
  std::string check;  // the first that fails
  std::string words;  // what the failing gradients have in common
  std::function<void(Dialect&)> plant;
};

std::string gradient_of(int64_t layer, const std::string& weight) {
  return "grad.model.layers." + std::to_string(layer) + "." + weight + ".weight";
}

class PlantedOnTheWayBack : public testing::TestWithParam<Planted> {};

TEST_P(PlantedOnTheWayBack, IsCaughtInItsLayer) {
  const Planted& p = GetParam();
  const CaseRun run(io::find_case("tiny-wide"), false);
  const auto verdicts = verdicts_of(run, mutant(p.layer, p.plant), "0,1");
  const Verdict* failure = harness::first_failure(verdicts);
  ASSERT_NE(failure, nullptr);
  EXPECT_EQ(failure->tap, p.check);
  const auto patterns = harness::gradient_patterns(verdicts);
  ASSERT_FALSE(patterns.empty());
  EXPECT_NE(patterns.front().words.find(p.words), std::string::npos) << patterns.front().words;
  for (const Verdict& v : verdicts)  // nothing behind it on the way
    if (v.layer && *v.layer > p.layer) EXPECT_EQ(v.trust, Trust::pass) << v.tap;
}

INSTANTIATE_TEST_SUITE_P(
    All, PlantedOnTheWayBack,
    testing::Values(Planted{"DroppedExpert", 1, gradient_of(1, "mlp.experts.5.down_proj"),
                            "gradients are exactly zero: the routed experts (3 of 48)",
                            [](Dialect& d) { d.moe.dropped_gradient_expert = 5; }},
                    Planted{"SoftmaxScale", 1, gradient_of(1, "self_attn.o_proj"),
                            "off from grad.model.layers.1.self_attn.o_proj",
                            [](Dialect& d) { d.attention.scale = SoftmaxScale::nope; }},
                    Planted{"WeightsNotNormalised", 1, gradient_of(1, "mlp.experts.0.down_proj"),
                            "off from grad.model.layers.1.mlp.gate",
                            [](Dialect& d) { d.router.normalise = false; }},
                    Planted{"LatentNorm", 0, gradient_of(0, "self_attn.o_proj"),
                            "off from grad.model.layers.0.self_attn.o_proj",
                            [](Dialect& d) { d.norm.eps_q_latent = 1e-2; }},
                    Planted{"DenseGateAndUp", 0, gradient_of(0, "mlp.down_proj"),
                            "off from grad.model.layers.0.mlp.",
                            [](Dialect& d) { d.moe.swapped_dense = true; }}),
    [](const auto& info) { return info.param.name; });

/// Queries in blocks, as at full size.
TEST(Blocks, OfALargeCaseGoBackToo) {
  Case c = io::find_case("tiny-wide");
  c.config.num_attention_heads = c.config.num_key_value_heads = 64;
  c.config.max_position_embeddings = 1024;
  c.B = 1, c.S = 736, c.pad = 0;
  ASSERT_LT(queries_at_once(c.config, c.B, c.S), c.S);
  const CaseRun run(c, false);
  EXPECT_EQ(failures(verdicts_of(run, own("optimized", DType::float32), "1", false)), "");
}

TEST(ExpertRanges, AreAllExpertsWhileTheyAreSmall) {
  const ModelConfig small = io::read_config("small"), full = io::read_config("full");
  EXPECT_EQ(expert_ranges(small).size(), 1U);
  ASSERT_EQ(expert_ranges(full).size(), 32U);
  EXPECT_EQ(expert_ranges(full).back().last, 256);
  const Segment mlp{SegmentKind::mlp, 3};
  EXPECT_EQ(segment_gradients(full, mlp, ExpertRange{8, 16}).size(), 24U);
  EXPECT_EQ(segment_gradients(full, mlp, {}).size(), 5U);
}

TEST(GradientStreams, AreZeroAtPaddedTokens) {
  const Case& c = io::find_case("tiny-wide");
  const Batch batch = make_batch(c);
  const HostTensor values = synthetic_gradient(1, 3, batch, 64);
  EXPECT_TRUE(values.identical(values.cast(DType::bfloat16).cast(DType::float32)));
  const HostTensor plain = bell_stream(1, "dhidden.3", {batch.B, batch.S, 64}, -9);
  for (int64_t i = 0; i < values.numel(); ++i) {
    const int64_t row = i / 64;
    ASSERT_EQ(values.at(i), batch.valid(row / batch.S, row % batch.S) ? plain.at(i) : 0) << i;
  }
}

}  // namespace
}  // namespace dsv32::suites
