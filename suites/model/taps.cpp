// Names of taps: vocabulary, parsing, shapes, order, stages' inputs, traces and sketches.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/sketch.h"
#include "src/model/trace.h"
#include "src/model/weights.h"

namespace dsv32 {
namespace {

using Names = std::vector<std::string>;

TapName parsed(const std::string& full) {
  const std::optional<TapName> tap = parse_tap(full);
  if (!tap) throw std::invalid_argument("not a tap: " + full);
  return *tap;
}

Names inputs(const std::string& full, const ModelConfig& config) {
  return tap_inputs(parsed(full), config);
}

TEST(SelfTaps, VocabularyIsInPaperOrder) {
  Names per_layer;
  for (const TapInfo& info : tap_vocabulary()) {
    if (info.per_layer) per_layer.emplace_back(info.name);
  }
  EXPECT_EQ(per_layer,
            (Names{"attn_norm",  "q_latent",      "kv_latent",      "q_nope",         "q_rope",
                   "k_rope",     "ix.q",          "ix.k",           "ix.weights",     "ix.scores",
                   "topk",       "attn.logits",   "attn.probs",     "attn.ctx",       "attn.out",
                   "ffn_norm",   "router.logits", "router.experts", "router.weights", "moe.routed",
                   "moe.shared", "mlp.out",       "hidden",         "kl.target",      "kl.student",
                   "kl.rows",    "kl.dscores",    "loss.kl"}));
}

TEST(SelfTaps, ParsesLayerTaps) {
  const TapName tap = parsed("layers.12.attn.ctx");
  EXPECT_EQ(tap.layer, 12);
  EXPECT_EQ(tap.info.name, "attn.ctx");
  EXPECT_EQ(tap.info.kind, TapKind::token);
  EXPECT_EQ(layer_tap(12, "attn.ctx"), "layers.12.attn.ctx");
  EXPECT_EQ(parsed("layers.0.topk").info.kind, TapKind::topk);
  EXPECT_EQ(parsed("layers.0.ix.k").info.kind, TapKind::key);
  EXPECT_EQ(parsed("layers.1.loss.kl").layer, 1);
  EXPECT_EQ(parsed("loss.kl").layer, std::nullopt);
  EXPECT_EQ(parsed("loss.lm").info.kind, TapKind::scalar);
  EXPECT_EQ(parsed("train.grad_norm").info.kind, TapKind::series);
}

TEST(SelfTaps, ParsesGradientsAndParameters) {
  const TapName gate = parsed("grad.model.layers.1.mlp.gate.weight");
  EXPECT_EQ(gate.info.kind, TapKind::gradient);
  EXPECT_EQ(gate.info.name, "grad");
  EXPECT_EQ(gate.layer, 1);
  EXPECT_EQ(parsed("grad.lm_head.weight").layer, std::nullopt);
  EXPECT_EQ(parsed("param.model.norm.weight").info.name, "param");
  EXPECT_TRUE(parse_tap("grad.model.layers.0.self_attn.q_a_proj.lora_A.weight"));
}

TEST(SelfTaps, RefusesEverythingElse) {
  for (const char* name : {"",
                           "layers",
                           "layers.",
                           "layers.0",
                           "layers.0.",
                           "layers.0.nope",
                           "layers.-1.topk",
                           "layers.01.topk",
                           "layers.+1.topk",
                           "layers. 1.topk",
                           "layers.1x.topk",
                           "layers.99999999999999999999.topk",
                           "attn.ctx",
                           "layers.0.embed",
                           "layers.0.loss.lm",
                           "grad.",
                           "grad.x",
                           "param",
                           "grad.model.layers.x.mlp.gate.weight",
                           "topk",
                           "train.speed",
                           "layers.0.attn.ctx "}) {
    EXPECT_FALSE(parse_tap(name)) << name;
  }
}

TEST(SelfTaps, StemDropsTheLayerOnly) {
  EXPECT_EQ(tap_stem("layers.3.attn.ctx"), "attn.ctx");
  EXPECT_EQ(tap_stem("logits"), "logits");
  EXPECT_EQ(tap_stem("grad.model.layers.31.mlp.gate.weight"), "grad.mlp.gate.weight");
  EXPECT_EQ(tap_stem("param.model.layers.3.mlp.gate.weight"), "param.mlp.gate.weight");
  EXPECT_EQ(tap_stem("grad.model.norm.weight"), "grad.model.norm.weight");
  EXPECT_EQ(tap_stem("not a tap"), "not a tap");
}

TEST(SelfTaps, EveryForwardTapParsesAndHasAShape) {
  for (const char* name : {"tiny", "small", "full"}) {
    const ModelConfig config = io::read_config(name);
    const Names taps = forward_taps(config);
    EXPECT_EQ(std::set<std::string>(taps.begin(), taps.end()).size(), taps.size());
    for (const std::string& tap : taps) EXPECT_TRUE(tap_shape(parsed(tap), config, 2, 4)) << tap;
  }
}

TEST(SelfTaps, ForwardOrderOfTiny) {
  const Names taps = forward_taps(io::read_config("tiny"));
  EXPECT_EQ(taps.size(), 1U + 18U + 23U + 3U);  // layer 0 is dense: no router and no moe taps
  EXPECT_EQ(taps.front(), "embed");
  EXPECT_EQ(taps[1], "layers.0.attn_norm");
  EXPECT_EQ(taps[18], "layers.0.hidden");
  EXPECT_EQ(taps[19], "layers.1.attn_norm");
  EXPECT_EQ(taps[41], "layers.1.hidden");
  EXPECT_EQ((Names{taps.end() - 3, taps.end()}), (Names{"final_norm", "logits", "loss.lm"}));
}

TEST(SelfTaps, InputsComeBeforeTheirTap) {
  const ModelConfig config = io::read_config("small");
  const Names taps = forward_taps(config);
  for (auto tap = taps.begin(); tap != taps.end(); ++tap) {
    for (const std::string& input : inputs(*tap, config)) {
      EXPECT_NE(std::find(taps.begin(), tap, input), tap) << *tap << " reads " << input;
    }
  }
}

TEST(SelfTaps, ObjectivesDecideWhichTapsThereAre) {
  const ModelConfig config = io::read_config("tiny");
  const Objective warmup{.lm = false, .kl = KlStage::warmup}, joint{.kl = KlStage::sparse};
  EXPECT_EQ(kl_taps(config, {}), Names{});
  EXPECT_EQ(kl_taps(config, warmup).size(), 11u);  // 2 layers of 5, and the model's loss
  EXPECT_EQ(kl_taps(config, warmup).back(), "loss.kl");
  EXPECT_EQ(gradient_taps(config, {}), gradient_taps(config));
  EXPECT_EQ(gradient_taps(config, warmup).size(), 10u);  // the indexer's alone
  EXPECT_EQ(gradient_taps(config, warmup).front(),
            "grad.model.layers.1.self_attn.indexer.weights_proj.weight");
  EXPECT_EQ(gradient_taps(config, joint).size(), gradient_taps(config).size() + 10);
}

TEST(SelfTaps, OnlyTheseTapsAreNotRowsOfTokens) {
  std::vector<std::pair<std::string, TapKind>> special;
  for (const TapInfo& info : tap_vocabulary()) {
    if (info.kind != TapKind::token) special.emplace_back(info.name, info.kind);
  }
  using enum TapKind;
  EXPECT_EQ(special, (std::vector<std::pair<std::string, TapKind>>{{"ix.k", key},
                                                                   {"ix.scores", scores},
                                                                   {"topk", topk},
                                                                   {"attn.logits", attention},
                                                                   {"attn.probs", attention},
                                                                   {"router.experts", experts},
                                                                   {"loss.lm", scalar},
                                                                   {"kl.target", keys},
                                                                   {"kl.student", keys},
                                                                   {"kl.dscores", keys},
                                                                   {"loss.kl", scalar},
                                                                   {"loss.kl", scalar},
                                                                   {"train.loss", series},
                                                                   {"train.grad_norm", series},
                                                                   {"train.kl", series},
                                                                   {"gen.tokens", series},
                                                                   {"gen.logits", series}}));
}

TEST(SelfTaps, StagesReadWhatTheirFormulaReads) {
  const ModelConfig tiny = io::read_config("tiny");
  const auto stems = [&](const std::string& name) {
    Names names;
    for (const std::string& input : inputs(layer_tap(1, name), tiny))
      names.push_back(tap_stem(input));
    return names;
  };
  for (const char* name : {"q_latent", "kv_latent", "k_rope", "ix.k", "ix.weights"}) {
    EXPECT_EQ(stems(name), Names{"attn_norm"}) << name;
  }
  for (const char* name : {"q_nope", "q_rope", "ix.q"}) {
    EXPECT_EQ(stems(name), Names{"q_latent"}) << name;
  }
  EXPECT_EQ(stems("ix.scores"), (Names{"ix.q", "ix.k", "ix.weights"}));
  EXPECT_EQ(stems("topk"), Names{"ix.scores"});
  EXPECT_EQ(stems("attn.logits"), (Names{"q_nope", "q_rope", "kv_latent", "k_rope"}));
  EXPECT_EQ(stems("attn.probs"), (Names{"attn.logits", "topk"}));
  EXPECT_EQ(stems("attn.ctx"), (Names{"attn.probs", "kv_latent"}));
  EXPECT_EQ(stems("attn.out"), Names{"attn.ctx"});
  EXPECT_EQ(stems("ffn_norm"), (Names{"hidden", "attn.out"}));
  EXPECT_EQ(stems("router.weights"), (Names{"router.logits", "router.experts"}));
  EXPECT_EQ(stems("moe.routed"), (Names{"ffn_norm", "router.experts", "router.weights"}));
  EXPECT_EQ(stems("moe.shared"), Names{"ffn_norm"});
  EXPECT_EQ(stems("kl.target"), Names{"attn.probs"});
  EXPECT_EQ(stems("kl.student"), (Names{"ix.scores", "topk"}));
  EXPECT_EQ(stems("kl.rows"), (Names{"kl.target", "ix.scores", "topk"}));
}

TEST(SelfTaps, ResidualInputsAreThoseOfTheLayerBefore) {
  const ModelConfig tiny = io::read_config("tiny");
  EXPECT_EQ(inputs("layers.0.attn_norm", tiny), Names{"embed"});
  EXPECT_EQ(inputs("layers.1.attn_norm", tiny), Names{"layers.0.hidden"});
  EXPECT_EQ(inputs("layers.1.hidden", tiny),
            (Names{"layers.0.hidden", "layers.1.attn.out", "layers.1.mlp.out"}));
  EXPECT_EQ(inputs("layers.0.mlp.out", tiny), Names{"layers.0.ffn_norm"});
  EXPECT_EQ(inputs("layers.1.mlp.out", tiny),
            (Names{"layers.1.moe.routed", "layers.1.moe.shared"}));
  EXPECT_EQ(inputs("final_norm", tiny), Names{"layers.1.hidden"});
  EXPECT_EQ(inputs("embed", tiny), Names{});
  EXPECT_EQ(inputs("grad.lm_head.weight", tiny), Names{});
}

struct ShapeRow {
  std::string tap;
  Shape shape;
};

// docs/formats.md 4 at tiny-wide, B 2, S 33.
const std::vector<ShapeRow> kShapes = {
    {"embed", {2, 33, 64}},
    {"layers.0.attn_norm", {2, 33, 64}},
    {"layers.0.q_latent", {2, 33, 32}},
    {"layers.0.kv_latent", {2, 33, 16}},
    {"layers.0.q_nope", {2, 33, 4, 16}},
    {"layers.0.q_rope", {2, 33, 4, 16}},
    {"layers.0.k_rope", {2, 33, 16}},
    {"layers.0.ix.q", {2, 33, 16, 32}},
    {"layers.0.ix.k", {2, 33, 32}},
    {"layers.0.ix.weights", {2, 33, 16}},
    {"layers.0.ix.scores", {2, 33, 33}},
    {"layers.0.topk", {2, 33, 8}},
    {"layers.0.attn.logits", {2, 4, 33, 33}},
    {"layers.0.attn.probs", {2, 4, 33, 33}},
    {"layers.0.attn.ctx", {2, 33, 4, 16}},
    {"layers.0.attn.out", {2, 33, 64}},
    {"layers.0.ffn_norm", {2, 33, 64}},
    {"layers.1.router.logits", {2, 33, 16}},
    {"layers.1.router.experts", {2, 33, 4}},
    {"layers.1.router.weights", {2, 33, 4}},
    {"layers.1.moe.routed", {2, 33, 64}},
    {"layers.1.moe.shared", {2, 33, 64}},
    {"layers.0.mlp.out", {2, 33, 64}},
    {"layers.0.hidden", {2, 33, 64}},
    {"final_norm", {2, 33, 64}},
    {"logits", {2, 33, 100}},
    {"loss.lm", {}},
    {"layers.0.kl.target", {2, 33, 33}},
    {"layers.0.kl.student", {2, 33, 33}},
    {"layers.0.kl.rows", {2, 33}},
    {"layers.0.kl.dscores", {2, 33, 33}},
    {"layers.0.loss.kl", {}},
    {"loss.kl", {}},
    {"grad.model.layers.1.mlp.experts.15.down_proj.weight", {64, 32}},
    {"param.lm_head.weight", {100, 64}},
};

TEST(SelfTaps, ShapesAreThoseOfTheFormat) {
  const ModelConfig config = io::find_case("tiny-wide").config;
  for (const ShapeRow& row : kShapes) {
    EXPECT_EQ(tap_shape(parsed(row.tap), config, 2, 33), row.shape) << row.tap;
  }
}

TEST(SelfTaps, TapsThatTheModelLacksHaveNoShape) {
  const ModelConfig tiny = io::read_config("tiny");
  for (const char* name : {"layers.0.router.logits", "layers.0.moe.shared", "layers.2.attn.ctx",
                           "grad.model.layers.2.input_layernorm.weight", "train.loss", "gen.logits",
                           "grad.model.layers.1.mlp.experts.4.up_proj.weight"}) {
    EXPECT_FALSE(tap_shape(parsed(name), tiny, 2, 33)) << name;
  }
}

TEST(SelfTaps, GradientsAreTheTrainableWeightsOutsideTheIndexer) {
  const ModelConfig small = io::read_config("small");
  std::set<std::string> expected;
  for (const WeightSpec& spec : weight_specs(small)) {
    if (!is_buffer(spec.name) && !is_indexer(spec.name)) expected.insert("grad." + spec.name);
  }
  const Names gradients = gradient_taps(small);
  EXPECT_EQ(std::set<std::string>(gradients.begin(), gradients.end()), expected);
  EXPECT_EQ(gradients.size(), expected.size());
}

TEST(SelfTaps, GradientsAreInBackPropagationOrder) {
  const Names gradients = gradient_taps(io::read_config("tiny"));
  const auto place = [&](const std::string& weight) {
    return std::find(gradients.begin(), gradients.end(), "grad." + weight) - gradients.begin();
  };
  const std::string last = "model.layers.1.";
  const Names order = {"lm_head.weight",
                       "model.norm.weight",
                       last + "mlp.experts.0.down_proj.weight",
                       last + "mlp.experts.0.gate_proj.weight",
                       last + "mlp.experts.3.up_proj.weight",
                       last + "mlp.shared_experts.down_proj.weight",
                       last + "mlp.gate.weight",
                       last + "post_attention_layernorm.weight",
                       last + "self_attn.o_proj.weight",
                       last + "self_attn.kv_b_proj.weight",
                       last + "self_attn.q_b_proj.weight",
                       last + "self_attn.q_a_proj.weight",
                       last + "input_layernorm.weight",
                       "model.layers.0.mlp.down_proj.weight",
                       "model.layers.0.input_layernorm.weight",
                       "model.embed_tokens.weight"};
  for (size_t i = 1; i < order.size(); ++i) {
    EXPECT_LT(place(order[i - 1]), place(order[i])) << order[i];
  }
  EXPECT_EQ(gradients.back(), "grad.model.embed_tokens.weight");
}

TEST(SelfTrace, KeepsTheOrderOfTheFirstPut) {
  Trace trace;
  EXPECT_TRUE(trace.empty());
  trace.put("logits", HostTensor(DType::float32, {1}));
  trace.put("embed", HostTensor(DType::float32, {2}));
  trace.put("logits", HostTensor(DType::float32, {3}));
  EXPECT_EQ(trace.names(), (Names{"logits", "embed"}));
  EXPECT_EQ(trace.find("logits")->shape(), Shape{3});
  trace.erase("logits");
  EXPECT_FALSE(trace.has("logits"));
  EXPECT_EQ(trace.names(), Names{"embed"});
  EXPECT_EQ(trace.find("nothing"), nullptr);
}

TEST(SelfSketch, SignsAreTheBytesOfTheStream) {
  // Bytes 0..7 and 30..33 of the stream (0, "sketch.embed"), made by numpy.
  const std::vector<uint8_t> signs = sketch_signs("embed", 34);
  EXPECT_EQ((std::vector<int>{signs.begin(), signs.begin() + 8}),
            (std::vector<int>{15, 89, 29, 79, 244, 103, 71, 75}));
  EXPECT_EQ((std::vector<int>{signs.begin() + 30, signs.end()}),
            (std::vector<int>{58, 214, 188, 109}));
}

TEST(SelfSketch, ProjectsWithSignsByBit) {
  const std::vector<double> row = {1, 10, -std::numeric_limits<double>::infinity(), 1000};
  const std::vector<uint8_t> signs = {0b00000001, 0b00000011, 0xff, 0b10000000};
  std::vector<double> out(kProjections);
  project(row, signs, out);
  EXPECT_EQ(out, (std::vector<double>{1 + 10 - 1000, -1 + 10 - 1000, -1011, -1011, -1011, -1011,
                                      -1011, -1 - 10 + 1000}));
  EXPECT_THROW(project(row, std::span(signs).first(3), out), Error);
}

TEST(SelfSketch, RowsAreTokensOrWholeGradients) {
  const auto rows = [](const std::string& tap, const Shape& shape) {
    const SketchRows found = sketch_rows(parsed(tap), shape);
    return std::pair{found.count, found.size};
  };
  EXPECT_EQ(rows("layers.0.q_rope", {2, 33, 4, 16}), (std::pair<int64_t, int64_t>{66, 64}));
  EXPECT_EQ(rows("layers.0.attn.probs", {2, 4, 33, 33}), (std::pair<int64_t, int64_t>{66, 132}));
  EXPECT_EQ(rows("layers.0.ix.k", {2, 33, 32}), (std::pair<int64_t, int64_t>{66, 32}));
  EXPECT_EQ(rows("grad.lm_head.weight", {100, 64}), (std::pair<int64_t, int64_t>{1, 6400}));
  EXPECT_EQ(rows("loss.lm", {}), (std::pair<int64_t, int64_t>{1, 1}));
  EXPECT_EQ(rows("embed", {0, 33, 64}), (std::pair<int64_t, int64_t>{0, 0}));
}

}  // namespace
}  // namespace dsv32
