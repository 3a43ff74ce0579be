// Trace files and batches of own data: what is refused, what is converted.

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "src/model/sketch.h"
#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

using Metadata = std::map<std::string, std::string>;
using Tensors = std::vector<std::pair<std::string, HostTensor>>;

Metadata good_metadata() {
  return {{"format", "dsv32-verify.trace"},
          {"version", "1"},
          {"case", "tiny"},
          {"mode", "forward"},
          {"dtype", "float32"},
          {"rope_layout", "interleaved"},
          {"index_layout", "canonical"},
          {"producer", "{}"},
          {"weights", "synthetic:1"},
          {"forced", "false"},
          {"attn_implementation", "eager"},
          {"mask", "given"}};
}

Metadata with(const std::string& key, const std::string& value) {
  Metadata metadata = good_metadata();
  metadata[key] = value;
  return metadata;
}

Trace read(const Metadata& metadata, const Tensors& tensors) {
  const Folder folder;
  put_tensors(folder / "t", metadata, tensors);
  return io::read_trace(folder / "t");
}

std::string trace_refusal(const Metadata& metadata, const Tensors& tensors = {}) {
  return refusal([&] { read(metadata, tensors); });
}

HostTensor counted(DType dtype, const Shape& shape) {
  std::vector<double> values(static_cast<size_t>(numel(shape)));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i % 250);
  return HostTensor::from_doubles(dtype, shape, values);
}

TEST(SelfTraces, ReadsWhatItWrote) {
  Trace trace;
  trace.metadata = with("x.unknown", "kept");
  trace.put("layers.0.topk", counted(DType::int32, {2, 32, 8}));
  trace.put("layers.0.hidden", counted(DType::bfloat16, {2, 32, 64}));
  trace.put("loss.lm", HostTensor::from_doubles(DType::float64, {}, std::vector<double>{NAN}));
  trace.put("grad.model.norm.weight", counted(DType::float32, {64}));
  const Folder folder;
  io::write_trace(folder / "t", trace);
  const Trace back = io::read_trace(folder / "t");
  EXPECT_EQ(back.metadata, trace.metadata);
  EXPECT_EQ(back.names(), trace.names());
  for (const std::string& name : trace.names())
    EXPECT_TRUE(back.find(name)->identical(*trace.find(name))) << name;
}

TEST(SelfTraces, TensorsComeInExecutionOrder) {
  const Trace trace =
      read(good_metadata(), {{"param.model.norm.weight", HostTensor(DType::float32, {64})},
                             {"grad.model.norm.weight", HostTensor(DType::float32, {64})},
                             {"grad.lm_head.weight", HostTensor(DType::float32, {100, 64})},
                             {"train.loss", HostTensor(DType::float32, {3})},
                             {"layers.1.kl.rows", HostTensor(DType::float32, {2, 32})},
                             {"logits", HostTensor(DType::float32, {2, 32, 100})},
                             {"layers.1.attn.out", HostTensor(DType::float32, {2, 32, 64})},
                             {"layers.0.hidden", HostTensor(DType::float32, {2, 32, 64})}});
  const std::vector<std::string> names = trace.names();
  ASSERT_EQ(names.size(), 8U);
  EXPECT_EQ(names[0], "layers.0.hidden");
  EXPECT_EQ(names[1], "layers.1.attn.out");
  EXPECT_EQ(names[2], "logits");
  EXPECT_EQ(names[5], "grad.lm_head.weight");
  EXPECT_EQ(names[6], "grad.model.norm.weight");
  EXPECT_EQ(names[7], "param.model.norm.weight");
}

TEST(SelfTraces, EveryTapOfACaseIsAccepted) {
  const Case c = io::find_case("tiny");
  Tensors tensors;
  for (const auto& names : {forward_taps(c.config), gradient_taps(c.config)}) {
    for (const std::string& name : names) {
      const TapName tap = *parse_tap(name);
      const bool decision = tap.info.is_decision();
      tensors.push_back({name, HostTensor(decision ? DType::int32 : DType::float32,
                                          *tap_shape(tap, c.config, c.B, c.S))});
    }
  }
  EXPECT_EQ(read(good_metadata(), tensors).names().size(), tensors.size());
}

TEST(SelfTraces, ConvertsRotatedTapsToInterleaved) {
  const HostTensor stored = counted(DType::float32, {2, 32, 16});
  const Trace trace = read(with("rope_layout", "deinterleaved"),
                           {{"layers.0.k_rope", stored}, {"layers.0.kv_latent", stored}});
  const HostTensor& k_rope = *trace.find("layers.0.k_rope");
  for (int64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(k_rope.at(16 + 2 * i), stored.at(16 + i)) << i;
    EXPECT_EQ(k_rope.at(16 + 2 * i + 1), stored.at(16 + 8 + i)) << i;
  }
  EXPECT_TRUE(trace.find("layers.0.kv_latent")->identical(stored));
  EXPECT_EQ(trace.metadata.at("rope_layout"), "interleaved");
  EXPECT_EQ(trace.metadata.at("rope_layout_stored"), "deinterleaved");
}

TEST(SelfTraces, NarrowsWideDecisions) {
  std::vector<int64_t> values(2 * 32 * 8, -1);
  const Trace trace = read(good_metadata(), {{"layers.0.topk", int64_tensor({2, 32, 8}, values)}});
  EXPECT_EQ(trace.find("layers.0.topk")->dtype(), DType::int32);
  EXPECT_EQ(trace.find("layers.0.topk")->at(0), -1);
  for (const int64_t wide : {int64_t{1} << 31, -(int64_t{1} << 31) - 1}) {
    values[7] = wide;
    EXPECT_TRUE(
        has(trace_refusal(good_metadata(), {{"layers.0.topk", int64_tensor({2, 32, 8}, values)}}),
            {"layers.0.topk", "element 7", "32 bits", "got " + std::to_string(wide)}));
  }
}

Metadata five_keys(const std::string& c = "tiny") {
  Metadata five;
  for (const char* key : {"format", "version", "mode", "dtype"})
    five[key] = good_metadata().at(key);
  five["case"] = c;
  return five;
}

TEST(SelfTraces, FiveKeysAreRequired) {
  for (const auto& [key, value] : five_keys()) {
    Metadata metadata = good_metadata();
    metadata.erase(key);
    EXPECT_TRUE(has(trace_refusal(metadata), {"metadata." + key, "a missing key"})) << key;
  }
}

TEST(SelfTraces, OtherKeysHaveDefaults) {
  Metadata expected = good_metadata();
  expected["attn_implementation"] = "unknown";
  EXPECT_EQ(read(five_keys(), {}).metadata, expected);
  EXPECT_EQ(read(five_keys("tiny-nopad"), {}).metadata.at("mask"), "none");
  Case c = io::find_case("tiny");
  c.seed = 7;
  EXPECT_EQ(read(five_keys(io::case_json(c)), {}).metadata.at("weights"), "synthetic:7");
}

TEST(SelfTraces, ConvertsTheRopeLanesOfTheIndexer) {
  const HostTensor stored = counted(DType::float32, {2, 32, 32});
  const Trace trace = read(with("index_layout", "deinterleaved"), {{"layers.0.ix.k", stored}});
  const HostTensor& k = *trace.find("layers.0.ix.k");
  for (int64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(k.at(32 + 2 * i), stored.at(32 + i)) << i;
    EXPECT_EQ(k.at(32 + 2 * i + 1), stored.at(32 + 8 + i)) << i;
    EXPECT_EQ(k.at(32 + 16 + i), stored.at(32 + 16 + i)) << "lanes without rotation stay";
  }
  EXPECT_EQ(trace.metadata.at("index_layout_stored"), "deinterleaved");
}

TEST(SelfTraces, AScalarHasOneElementInAnyRank) {
  const HostTensor loss = HostTensor::from_doubles(DType::float32, {1, 1}, std::vector{2.5});
  const Trace trace = read(good_metadata(), {{"loss.lm", loss}});
  EXPECT_EQ(trace.find("loss.lm")->shape(), Shape{});
  EXPECT_EQ(trace.find("loss.lm")->at(0), 2.5);
  EXPECT_TRUE(has(trace_refusal(good_metadata(), {{"loss.lm", HostTensor(DType::float32, {2})}}),
                  {"loss.lm: shape"}));
}

TEST(SelfTraces, HalfOfTheLowestNumberIsMinusInfinity) {
  std::vector<double> values(2 * 32 * 32, 1);
  values[0] = -3.4e38;
  values[1] = -1.6e38;  // above half of it
  const Trace trace =
      read(good_metadata(),
           {{"layers.0.ix.scores", HostTensor::from_doubles(DType::float32, {2, 32, 32}, values)}});
  EXPECT_EQ(trace.find("layers.0.ix.scores")->at(0), -INFINITY);
  EXPECT_NE(trace.find("layers.0.ix.scores")->at(1), -INFINITY);
}

Tensors slope_of_hidden() {
  return {{"dtap.layers.0.hidden", HostTensor(DType::float32, {2, 32, 64})}};
}

TEST(SelfTraces, GradientsByTapsStandApart) {
  const Trace trace = read(with("slopes_none", R"(["layers.1.attn.out"])"), slope_of_hidden());
  EXPECT_TRUE(trace.names().empty());
  EXPECT_EQ(trace.slopes.size(), 2U);  // with zeros where nothing arrived
  EXPECT_EQ(trace.slopes.at("layers.1.attn.out").at(0), 0);
}

TEST(SelfTraces, RefusesAGradientThatIsNotLikeItsTap) {
  const Tensors shape = {{"dtap.layers.0.hidden", HostTensor(DType::float32, {2, 3})}};
  EXPECT_TRUE(has(trace_refusal(good_metadata(), shape), {"dtap.layers.0.hidden", "[2,32,64]"}));
  const Tensors decision = {{"dtap.layers.0.topk", HostTensor(DType::int32, {2, 32, 8})}};
  EXPECT_TRUE(has(trace_refusal(good_metadata(), decision), {"a tap name"}));
  const Metadata none = with("slopes_none", R"(["layers.7.attn.out"])");
  EXPECT_TRUE(has(trace_refusal(none, slope_of_hidden()), {"slopes_none", "layers.7.attn.out"}));
}

TEST(SelfTraces, SingleStepsAreKnownNames) {
  const Trace trace = read(good_metadata(), {{"step.0.loss", HostTensor(DType::float32, {})}});
  EXPECT_TRUE(trace.names().empty());
  EXPECT_EQ(io::candidate_notes(trace, "t").unjudged_tensors.size(), 1U);
}

TEST(SelfTraces, UpdatesOfLoraFactorsHaveTheirShapes) {
  const Metadata metadata = with("mode", "train");
  const std::string a = "step.1.update.model.layers.0.self_attn.q_b_proj.lora_A.weight";
  const std::string b = "step.0.update.model.layers.1.mlp.experts.gate_up_proj.lora_B.weight";
  const Trace trace = read(metadata, {{a, HostTensor(DType::float32, {8, 32})},
                                      {b, HostTensor(DType::float32, {64, 32})}});
  EXPECT_TRUE(trace.has(a) && trace.has(b));
  const Tensors narrow = {{a, HostTensor(DType::float32, {4, 32})}};
  EXPECT_TRUE(has(trace_refusal(metadata, narrow), {a, "[8,32]", "[4,32]"}));
  const Tensors unknown = {
      {"step.0.update.model.norm.lora_A.weight", HostTensor(DType::float32, {8, 64})}};
  EXPECT_TRUE(has(trace_refusal(metadata, unknown), {"a weight or LoRA factor"}));
}

// --- sketches -----------------------------------------------------------------------------------

Tensors rows_of_logits(std::vector<int64_t> rows) {
  const auto n = static_cast<int64_t>(rows.size());
  return {{"logits#rows", HostTensor(DType::float32, {n, 100})},
          {"logits#row_index", int64_tensor({n}, rows)}};
}

TEST(SelfTraces, ReadsSketchedTapsAndRowsAlone) {
  const TapName tap = *parse_tap("layers.0.hidden");
  Trace trace;
  trace.metadata = with("sketch", "1");
  const HostTensor hidden = counted(DType::float32, {2, 32, 64});
  trace.sketches[tap.full] = sketch_tap(tap, hidden, {3, 63});
  const Folder folder;
  io::write_trace(folder / "t", trace);
  const TapSketch back = io::read_trace(folder / "t").sketches.at(tap.full);
  EXPECT_EQ(back.row_index, (std::vector<int64_t>{3, 63}));
  EXPECT_EQ(back.rows, trace.sketches.at(tap.full).rows);
  EXPECT_EQ(back.rows.at(64), hidden.at(63 * 64));
  EXPECT_EQ(back.row_norms.size(), 64U);
  EXPECT_EQ(back.projections.size(), 64U * 8);
  EXPECT_TRUE(read(good_metadata(), rows_of_logits({1, 40})).sketches.at("logits").rows_only());
}

TEST(SelfTraces, RefusesSketchesThatCannotBe) {
  EXPECT_TRUE(has(trace_refusal(good_metadata(), rows_of_logits({40, 1})), {"ascending rows"}));
  EXPECT_TRUE(has(trace_refusal(good_metadata(), rows_of_logits({64})), {"below 64"}));
  Tensors both = rows_of_logits({1});
  both.push_back({"logits", HostTensor(DType::float32, {2, 32, 100})});
  EXPECT_TRUE(has(trace_refusal(good_metadata(), both), {"whole or sketched", "both"}));
  EXPECT_TRUE(has(trace_refusal(good_metadata(), {rows_of_logits({1})[0]}), {"#row_index"}));
  const Tensors decision = {{"layers.0.topk#rows", HostTensor(DType::float32, {1, 8})},
                            {"layers.0.topk#row_index", int64_tensor({1}, {1})}};
  EXPECT_TRUE(has(trace_refusal(good_metadata(), decision), {"decisions and scalars come whole"}));
}

TEST(SelfTraces, RefusesEmptyMetadata) {
  for (const auto& [key, value] : good_metadata()) {
    EXPECT_TRUE(has(trace_refusal(with(key, "")), {"metadata." + key, "an empty text"})) << key;
  }
}

TEST(SelfTraces, RefusesWrongMetadata) {
  const std::vector<std::array<std::string, 3>> list = {{"format", "other", "dsv32-verify.trace"},
                                                        {"version", "2", "expected 1"},
                                                        {"case", "tyny", "did you mean tiny"},
                                                        {"mode", "inference", "forward"},
                                                        {"dtype", "int32", "float32"},
                                                        {"rope_layout", "half", "interleaved"},
                                                        {"producer", "[]", "an object"},
                                                        {"producer", "x", "producer"},
                                                        {"weights", "synthetic:x", "SEED"},
                                                        {"weights", "sha256", "DIGEST"},
                                                        {"forced", "maybe", "true"},
                                                        {"mask", "yes", "given or none"},
                                                        {"index_layout", "half", "canonical"},
                                                        {"layers", "0,2", "layers from 0 to 1"},
                                                        {"derived_taps", "{}", "derived_taps"},
                                                        {"failure", "[]", "failure"},
                                                        {"weights_loaded", "{}", "weights_loaded"}};
  for (const auto& [key, value, says] : list) {
    const std::string text = trace_refusal(with(key, value));
    EXPECT_TRUE(has(text, {"metadata." + key, says})) << text;
  }
}

TEST(SelfTraces, RefusesWrongTensors) {
  const HostTensor hidden(DType::float32, {2, 32, 64});
  EXPECT_TRUE(
      has(trace_refusal(good_metadata(), {{"nonsense", hidden}}), {"a tap name", "nonsense"}));
  EXPECT_TRUE(has(trace_refusal(good_metadata(), {{"layers.2.hidden", hidden}}),
                  {"layers.2.hidden", "case tiny"}));
  EXPECT_TRUE(has(trace_refusal(good_metadata(), {{"layers.0.router.logits",
                                                   HostTensor(DType::float32, {2, 32, 4})}}),
                  {"layers.0.router.logits", "does not have"}));
  EXPECT_TRUE(has(trace_refusal(good_metadata(),
                                {{"layers.0.hidden", HostTensor(DType::float32, {2, 33, 64})}}),
                  {"layers.0.hidden: shape", "[2,32,64]", "[2,33,64]"}));
  EXPECT_TRUE(has(
      trace_refusal(good_metadata(), {{"layers.0.hidden", HostTensor(DType::int32, {2, 32, 64})}}),
      {"layers.0.hidden: dtype", "BF16", "I32"}));
  EXPECT_TRUE(has(
      trace_refusal(good_metadata(), {{"layers.0.topk", HostTensor(DType::float32, {2, 32, 8})}}),
      {"layers.0.topk: dtype", "I32", "F32"}));
  EXPECT_TRUE(has(trace_refusal(good_metadata(),
                                {{"grad.model.norm.weight", HostTensor(DType::float32, {63})}}),
                  {"grad.model.norm.weight: shape", "[64]", "[63]"}));
  EXPECT_TRUE(has(trace_refusal(good_metadata(), {{"train.loss", HostTensor(DType::float32, {})}}),
                  {"[steps]"}));
}

Metadata generated(const std::string& decoding) {
  Metadata metadata = with("mode", "generate");
  if (!decoding.empty()) metadata["decoding"] = decoding;
  return metadata;
}

TEST(SelfTraces, ADecodingHasTheShapesOfItsHistory) {
  const Trace trace = read(generated(R"({"eos":7,"steps":5})"),
                           {{"gen.tokens", counted(DType::int64, {2, 5})},
                            {"gen.logits", counted(DType::float32, {2, 5, 100})},
                            {"layers.0.topk", counted(DType::int32, {2, 36, 8})},
                            {"layers.1.router.experts", counted(DType::int32, {2, 36, 2})}});
  EXPECT_EQ(trace.find("gen.tokens")->shape(), (Shape{2, 5}));
  EXPECT_EQ(io::case_of_trace(trace).decoding, (Decoding{.steps = 5, .eos = 7}));
  const Trace endless = read(generated(R"({"eos":null,"steps":5})"), {});
  EXPECT_EQ(io::case_of_trace(endless).decoding.eos, std::nullopt);
}

TEST(SelfTraces, RefusesADecodingThatCannotBe) {
  const std::vector<std::array<std::string, 2>> list = {{"", "a missing key"},
                                                        {R"({"eos":7})", "steps"},
                                                        {R"({"eos":7,"steps":0})", "1..97"},
                                                        {R"({"eos":7,"steps":98})", "1..97"},
                                                        {R"({"eos":100,"steps":5})", "0..99"},
                                                        {R"({"eos":-1,"steps":5})", "0..99"}};
  for (const auto& [decoding, says] : list) {
    const std::string text = trace_refusal(generated(decoding));
    EXPECT_TRUE(has(text, {"metadata.decoding", says})) << text;
  }
  EXPECT_TRUE(has(trace_refusal(generated("[]")), {"decoding", "an object", "a list"}));
  const Metadata good = generated(R"({"eos":7,"steps":5})");
  const auto refused = [&](const std::string& name, DType dtype, const Shape& shape) {
    return trace_refusal(good, {{name, HostTensor(dtype, shape)}});
  };
  EXPECT_TRUE(has(refused("gen.tokens", DType::int64, {2, 6}), {"[2,5]", "[2,6]"}));
  EXPECT_TRUE(has(refused("gen.tokens", DType::float32, {2, 5}), {"dtype", "I32 (or I64)"}));
  EXPECT_TRUE(has(refused("gen.logits", DType::int64, {2, 5, 100}), {"dtype", "BF16"}));
  EXPECT_TRUE(has(refused("layers.0.topk", DType::int32, {2, 32, 8}), {"[2,36,8]"}));
  EXPECT_TRUE(has(refused("layers.0.hidden", DType::float32, {2, 36, 64}), {"layers.0.hidden"}));
  EXPECT_TRUE(has(refused("logits#rows", DType::float32, {1, 100}), {"logits#rows"}));
  EXPECT_TRUE(
      has(trace_refusal(good_metadata(), {{"gen.tokens", HostTensor(DType::int64, {2, 5})}}),
          {"gen.tokens"}));
}

TEST(SelfTraces, AFailureNeedsNoTaps) {
  const Trace trace =
      read(with("failure", R"({"where":"indexer","message":"shapes","shapes":"[2,3]"})"), {});
  EXPECT_TRUE(trace.empty());
  EXPECT_EQ(io::candidate_notes(trace, "t").failure->where, "indexer");
}

TEST(SelfTraces, RefusesFilesThatAreNoTraces) {
  const Folder folder;
  put(folder / "empty", "");
  EXPECT_TRUE(has(refusal([&] { io::read_trace(folder / "empty"); }), {"empty", "got 0 bytes"}));
  put(folder / "bare", safetensors("{}", 0));
  EXPECT_TRUE(has(refusal([&] { io::read_trace(folder / "bare"); }), {"metadata.format"}));
}

TEST(SelfTraces, CaseHasTheMaskOfTheFile) {
  EXPECT_FALSE(io::case_of_trace(read(with("mask", "none"), {})).mask_given);
  EXPECT_TRUE(io::case_of_trace(read(good_metadata(), {})).mask_given);
}

// --- batches ------------------------------------------------------------------------------------

Batch read_ids(const Tensors& tensors) {
  const Folder folder;
  put_tensors(folder / "b", {}, tensors);
  Batch batch = io::read_batch(folder / "b", io::read_config("tiny"));
  EXPECT_EQ(batch.digest, io::sha256_file(folder / "b"));
  return batch;
}

std::string batch_refusal(const Tensors& tensors) {
  return refusal([&] { read_ids(tensors); });
}

const HostTensor kIds = int64_tensor({2, 4}, {0, 1, 2, 3, 4, 5, 6, 99});

TEST(SelfBatches, FillWhatAFileDoesNotSay) {
  const Batch batch = read_ids({{"input_ids", kIds}});
  EXPECT_FALSE(batch.mask_given);
  EXPECT_EQ(batch.attention_mask, std::vector<int64_t>(8, 1));
  EXPECT_EQ(batch.position_ids, (std::vector<int64_t>{0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(batch.labels, (std::vector<int64_t>{-100, 1, 2, 3, -100, 5, 6, 99}));
}

TEST(SelfBatches, KeepTheMaskAndTheLabels) {
  const HostTensor mask = int64_tensor({2, 4}, {1, 1, 1, 1, 0, 0, 1, 1});
  const HostTensor labels = int64_tensor({2, 4}, {-100, 1, 2, 3, -100, -100, -100, 99});
  const Batch batch = read_ids({{"input_ids", kIds}, {"attention_mask", mask}, {"labels", labels}});
  EXPECT_TRUE(batch.mask_given);
  EXPECT_EQ(batch.position_ids, (std::vector<int64_t>{0, 1, 2, 3, 0, 0, 0, 1}));
  EXPECT_EQ(batch.labels[7], 99);
}

TEST(SelfBatches, RefuseWrongTensors) {
  const auto masked = [](const HostTensor& mask) {
    return batch_refusal({{"input_ids", kIds}, {"attention_mask", mask}});
  };
  EXPECT_TRUE(has(batch_refusal({}), {"expected input_ids"}));
  EXPECT_TRUE(has(batch_refusal({{"input_ids", kIds}, {"position_ids", kIds}}),
                  {"position_ids", "follow from the mask"}));
  EXPECT_TRUE(has(batch_refusal({{"input_ids", HostTensor(DType::int32, {2, 4})}}),
                  {"input_ids: dtype", "I64", "I32"}));
  EXPECT_TRUE(has(batch_refusal({{"input_ids", HostTensor(DType::int64, {8})}}),
                  {"input_ids: shape", "[B,S]", "[8]"}));
  EXPECT_TRUE(has(batch_refusal({{"input_ids", HostTensor(DType::int64, {0, 4})}}),
                  {"batch", "at least one row"}));
  EXPECT_TRUE(has(batch_refusal({{"input_ids", int64_tensor({1, 2}, {0, 100})}}),
                  {"input_ids[0,1]", "0..99", "got 100"}));
  EXPECT_TRUE(has(batch_refusal({{"input_ids", int64_tensor({1, 2}, {-1, 0})}}),
                  {"input_ids[0,0]", "got -1"}));
  EXPECT_TRUE(
      has(masked(HostTensor(DType::int64, {2, 3})), {"attention_mask: shape", "[2,4]", "[2,3]"}));
  EXPECT_TRUE(has(masked(int64_tensor({2, 4}, {1, 1, 1, 1, 1, 1, 2, 1})),
                  {"attention_mask[1,2]", "0 or 1", "got 2"}));
  EXPECT_TRUE(has(masked(int64_tensor({2, 4}, {INT64_MAX, INT64_MAX, 1, 1, 1, 1, 2, 1})),
                  {"attention_mask[0,0]"}));
  EXPECT_TRUE(has(batch_refusal({{"input_ids", kIds},
                                 {"labels", int64_tensor({2, 4}, {0, 0, 0, 0, 0, 0, 0, -1})}}),
                  {"labels[1,3]", "-100", "got -1"}));
}

}  // namespace
}  // namespace dsv32::suites
