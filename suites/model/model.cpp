// The vocabulary's numbers: Philox, synthetic weights, batches and cases against docs/formats.md 1
// to 3.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "src/io/io.h"
#include "src/model/batch.h"
#include "src/model/case.h"
#include "src/model/errors.h"
#include "src/model/philox.h"
#include "src/model/weights.h"

namespace dsv32 {
namespace {

std::string digest(const HostTensor& tensor) {
  return io::sha256_hex(tensor.raw(), static_cast<size_t>(tensor.bytes()));
}

// Made by numpy.random.Philox; the second block needs a carry out of word 0.
TEST(SelfPhilox, IsTheFunctionOfNumpy) {
  const uint64_t top = ~uint64_t{0};
  const std::array<uint64_t, 2> key = {top, (uint64_t{1} << 63) + 5};
  const std::array<uint64_t, 4> first = {0xe659256cd29cb16a, 0x5e6969f1cf1f0d0e, 0xfb78a1bc34c57265,
                                         0x247970fef95e8021};
  const std::array<uint64_t, 4> second = {0x0720e6b593065d20, 0x65f6fd896d324db2,
                                          0x1fd22b49c518a7af, 0x8d17d0f03ebc88fa};
  EXPECT_EQ(philox4x64({top, 3, 4, 5}, key), first);
  EXPECT_EQ(philox4x64({0, 4, 4, 5}, key), second);
}

// On both sides of the 16 blocks that are made at a time.
TEST(SelfPhilox, ManyBlocksAreThoseMadeOneByOne) {
  constexpr uint64_t kUntouched = 0x5555555555555555;
  for (const uint64_t first : {uint64_t{1}, uint64_t{0xfffffff9}, ~uint64_t{0} - 500}) {
    const std::array<uint64_t, 2> key = {~first, first * 0x9e3779b97f4a7c15};
    for (const uint64_t count : {0, 1, 15, 16, 17, 31, 32, 33, 128, 257}) {
      std::vector<uint64_t> words(4 * count + 1, kUntouched);
      philox4x64_blocks(key, first, static_cast<int64_t>(count), words.data());
      for (uint64_t i = 0; i < count; ++i) {
        const auto block = philox4x64({first + i, 0, 0, 0}, key);
        EXPECT_TRUE(std::equal(block.begin(), block.end(), words.begin() + 4 * i)) << first + i;
      }
      EXPECT_EQ(words.back(), kUntouched) << count;
    }
  }
}

TEST(SelfPhilox, StreamOfANameStartsAtBlockOne) {
  const PhiloxStream stream(1, "model.norm.weight");
  const std::array<uint64_t, 4> first = {0x6eaf80637288685e, 0xeb492a8b34fc5834, 0xb16e1c90fce7e73f,
                                         0xf7cf28d15e3427a7};
  EXPECT_EQ(fnv1a64("model.norm.weight"), 0xd6d6e5afd11604e4);
  EXPECT_EQ(stream.block(1), first);
}

TEST(SelfPhilox, LanesCountFromTheLowBits) {
  const PhiloxStream stream(1, "model.norm.weight");
  EXPECT_EQ(stream.lane16(0), 0x685e);
  EXPECT_EQ(stream.lane16(3), 0x6eaf);
  EXPECT_EQ(stream.lane16(4), 0x5834);
  EXPECT_EQ(stream.lane16(15), 0xf7cf);
  EXPECT_EQ(stream.lane16(16), stream.block(2)[0] & 0xffff);
  EXPECT_EQ(stream.lane32(1), 0x6eaf8063);
  EXPECT_EQ(stream.lane32(7), 0xf7cf28d1);
  EXPECT_EQ(stream.lane32(8), stream.block(2)[0] & 0xffffffff);
}

struct WeightVector {
  WeightSpec spec;
  std::vector<double> first;
  double last;
  std::string sha256;
};

// docs/formats.md 1, test vectors of seed 1.
const std::vector<WeightVector> kWeightVectors = {
    {{"model.embed_tokens.weight", {100, 64}},
     {0.4375, 0.0, 0.75, -0.3125},
     -0.8125,
     "a13a30262b771547"},
    {{"model.layers.0.self_attn.q_b_proj.weight", {128, 32}},
     {0.9375, 0.75, 0.5625, -0.375},
     -0.25,
     "9560f16a19e05162"},
    {{"model.layers.1.self_attn.indexer.k_norm.bias", {32}},
     {0.046875, -0.234375, -0.046875, -0.015625},
     -0.359375,
     "dd5785172a32118e"},
    {{"model.layers.1.mlp.gate.e_score_correction_bias", {4}},
     {0.125, 0.140625, 0.078125, 0.0},
     0.0,
     "b49d93fc4377f3e5"},
    {{"model.norm.weight", {64}},
     {1.046875, 0.921875, 0.796875, 1.234375},
     1.140625,
     "45150c08ba4bb1cc"},
    {{"model.layers.60.mlp.experts.255.down_proj.weight", {7168, 2048}},
     {0.013671875, 0.005859375, 0.021484375, 0.013671875},
     0.00390625,
     "fa1aaf5d8e2b16c9"},
    {{"model.layers.3.self_attn.indexer.wk.weight", {128, 7168}},
     {0.0001220703125, 0.00006103515625, 0.0001220703125, 0.00018310546875},
     -0.0001220703125,
     "085fa5b9c35bdf4a"},
};

TEST(SelfWeights, MatchTheTestVectors) {
  const SyntheticWeights weights(1);
  for (const WeightVector& vector : kWeightVectors) {
    SCOPED_TRACE(vector.spec.name);
    const HostTensor tensor = weights.load(vector.spec);
    EXPECT_EQ(tensor.dtype(), DType::float32);
    EXPECT_EQ(tensor.shape(), vector.spec.shape);
    for (size_t i = 0; i < vector.first.size(); ++i) EXPECT_EQ(tensor.at(i), vector.first[i]);
    EXPECT_EQ(tensor.at(tensor.numel() - 1), vector.last);
    EXPECT_EQ(digest(tensor).substr(0, 16), vector.sha256);
  }
}

std::string model_digest(const ModelConfig& config) {
  std::vector<WeightSpec> specs = weight_specs(config);
  std::sort(specs.begin(), specs.end(),
            [](const WeightSpec& a, const WeightSpec& b) { return a.name < b.name; });
  const SyntheticWeights weights(1);
  std::string bytes;
  for (const WeightSpec& spec : specs) {
    const std::string hex = digest(weights.load(spec));
    bytes += spec.name;
    for (size_t i = 0; i < hex.size(); i += 2) {
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    }
  }
  return io::sha256_hex(bytes.data(), bytes.size()).substr(0, 16);
}

int64_t value_count(const ModelConfig& config) {
  int64_t sum = 0;
  for (const WeightSpec& spec : weight_specs(config)) sum += numel(spec.shape);
  return sum;
}

TEST(SelfWeights, WholeModelsMatchTheirDigests) {
  const ModelConfig tiny = io::read_config("tiny");
  EXPECT_EQ(weight_specs(tiny).size(), 51U);
  EXPECT_EQ(value_count(tiny), 110372);
  EXPECT_EQ(model_digest(tiny), "3f3230e85acf3f9b");
  const ModelConfig small = io::read_config("small");
  EXPECT_EQ(weight_specs(small).size(), 439U);
  EXPECT_EQ(value_count(small), 217340000);
  EXPECT_EQ(model_digest(small), "74eca0841d481c77");
}

/// What `load` has in these rows.
HostTensor slice(const HostTensor& whole, int64_t begin, int64_t end) {
  Shape shape = whole.shape();
  shape[0] = end - begin;
  HostTensor rows(whole.dtype(), shape);
  const int64_t row_bytes = whole.bytes() / whole.shape()[0];
  std::copy_n(whole.raw() + begin * row_bytes, rows.bytes(), rows.raw());
  return rows;
}

void expect_rows(const WeightSource& source, const WeightSpec& spec,
                 const std::vector<std::pair<int64_t, int64_t>>& ranges) {
  const HostTensor whole = source.load(spec);
  for (const auto& [begin, end] : ranges)
    EXPECT_TRUE(source.load_rows(spec, begin, end).identical(slice(whole, begin, end)))
        << spec.name << " rows " << begin << " to " << end;
}

TEST(SelfWeights, RowsAreThoseOfTheWhole) {
  const SyntheticWeights weights(3, -2);
  for (const WeightSpec& spec : weight_specs(io::read_config("tiny"))) {
    const int64_t rows = spec.shape[0];
    expect_rows(weights, spec, {{0, rows}, {0, 1}, {1, rows}, {rows - 1, rows}, {rows, rows}});
    expect_rows(weights, spec, {{rows / 3, rows / 3 + 1}, {rows / 3, rows - rows / 4}});
  }
}

// 5.7 million values are made in threads; 19 is no multiple of a block's 16.
TEST(SelfWeights, RowsOfALargeTensorAreThoseOfTheWhole) {
  const SyntheticWeights weights(1);
  const WeightSpec spec{"model.layers.3.self_attn.kv_b_proj.weight", {300'000, 19}};
  expect_rows(weights, spec,
              {{0, 300'000}, {1, 299'999}, {12'345, 280'001}, {77, 79}, {150'001, 150'001}});
  const PhiloxStream stream(1, spec.name);
  const HostTensor whole = weights.load(spec);
  for (int64_t i = 0; i < whole.numel(); i += 9'973) {
    const uint16_t lane = stream.lane16(static_cast<uint64_t>(i));
    const int bell = (lane & 15) + (lane >> 4 & 15) + (lane >> 8 & 15) + (lane >> 12) - 30;
    EXPECT_EQ(whole.at(i), bell * 0x1p-6) << i;  // 4^6 is the first beyond 85 * 19
  }
}

/// Has nothing but `load`.
class Plain : public WeightSource {
 public:
  HostTensor load(const WeightSpec& spec) const override {
    return SyntheticWeights(1).load(spec).cast(DType::float64);
  }
  std::string identity() const override { return "plain"; }
};

TEST(SelfWeights, SourcesWithoutRowsOfTheirOwnCutThem) {
  const WeightSpec spec{"model.layers.0.mlp.experts.1.up_proj.weight", {7, 5, 3}};
  expect_rows(Plain(), spec, {{0, 7}, {2, 5}, {6, 7}, {4, 4}});
  EXPECT_EQ(Plain().load_rows(spec, 2, 5).shape(), Shape({3, 5, 3}));
}

TEST(SelfWeights, RowsThatAreNotThereAreRefused) {
  const WeightSpec spec{"model.norm.weight", {64}};
  const std::vector<std::pair<int64_t, int64_t>> ranges = {{-1, 3}, {0, 65}, {5, 4}, {65, 65}};
  for (const auto& [begin, end] : ranges) {
    EXPECT_THROW(SyntheticWeights(1).load_rows(spec, begin, end), Error) << begin;
    EXPECT_THROW(Plain().load_rows(spec, begin, end), Error) << begin;
  }
}

TEST(SelfWeights, FullModelHas671BillionValues) {
  EXPECT_EQ(value_count(io::read_config("full")), 671877944064);
}

TEST(SelfWeights, EveryValueIsExactInBfloat16) {
  const SyntheticWeights weights(7, -2);
  for (const WeightSpec& spec : weight_specs(io::read_config("tiny"))) {
    const HostTensor tensor = weights.load(spec);
    EXPECT_TRUE(tensor.cast(DType::bfloat16).cast(DType::float32).identical(tensor)) << spec.name;
  }
}

TEST(SelfWeights, LaneBlocksAndThreadsDoNotShow) {
  // Sizes at the edges of a block of 16 and of the threaded path.
  const SyntheticWeights weights(1);
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  const HostTensor large = weights.load({name, {4097, 1024}});
  for (const int64_t rows : {int64_t{1}, int64_t{4095}, int64_t{4096}}) {
    const HostTensor part = weights.load({name, {rows, 1024}});
    const auto wanted = large.data<float>().first(static_cast<size_t>(part.numel()));
    EXPECT_TRUE(std::ranges::equal(part.data<float>(), wanted)) << rows;
  }
  for (const int64_t columns : {1, 15, 16, 17}) {
    const HostTensor part = weights.load({"model.embed_tokens.weight", {columns}});
    const HostTensor whole = weights.load({"model.embed_tokens.weight", {64}});
    for (int64_t i = 0; i < columns; ++i) EXPECT_EQ(part.at(i), whole.at(i)) << columns;
  }
}

TEST(SelfWeights, BiasOffsetMovesTheCorrectionBiasOnly) {
  const SyntheticWeights plain(1);
  const SyntheticWeights moved(1, -2);
  const WeightSpec bias = {"model.layers.1.mlp.gate.e_score_correction_bias", {4}};
  const WeightSpec gate = {"model.layers.1.mlp.gate.weight", {4, 64}};
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(moved.load(bias).at(i), plain.load(bias).at(i) - 2);
  EXPECT_TRUE(moved.load(gate).identical(plain.load(gate)));
}

TEST(SelfWeights, EditsChangeARowOrAColumn) {
  const WeightSpec o = {"model.layers.1.self_attn.o_proj.weight", {64, 64}};
  const WeightEdit row = {.name = "model.layers.*.self_attn.o_proj.weight", .row = 7, .scale = 64};
  const WeightEdit column = {.name = o.name, .column = 3, .scale = 0.5};
  const HostTensor plain = SyntheticWeights(1).load(o);
  const WeightEdit set = {.name = o.name, .row = 9, .scale = 0, .add = 1};
  const HostTensor edited = SyntheticWeights(1, 0, {row, column, set}).load(o);
  for (int64_t i = 0; i < plain.numel(); ++i) {
    double wanted = plain.at(i);
    if (i / 64 == 7) wanted *= 64;
    if (i % 64 == 3) wanted *= 0.5;
    if (i / 64 == 9) wanted = 1;
    ASSERT_EQ(edited.at(i), wanted) << i;
  }
  const WeightSpec part = {o.name, {8, 64}};  // the first rows alone
  EXPECT_EQ(SyntheticWeights(1, 0, {row}).load(part).at(7 * 64), plain.at(7 * 64) * 64);
  const WeightSpec norm = {"model.norm.weight", {64}};
  const WeightEdit one = {.name = norm.name, .row = 5, .scale = 0};
  EXPECT_EQ(SyntheticWeights(1, 0, {one}).load(norm).at(5), 0);
}

TEST(SelfWeights, RowsHaveTheirEdits) {
  const WeightSpec o = {"model.layers.1.self_attn.o_proj.weight", {64, 64}};
  const WeightSpec norm = {"model.norm.weight", {64}};
  const WeightEdit row = {.name = o.name, .row = 7, .scale = 64};
  const WeightEdit column = {.name = o.name, .column = 3, .scale = 0.5};
  const WeightEdit one = {.name = norm.name, .row = 5, .scale = 0};
  const WeightEdit other = {.name = norm.name, .column = 60, .scale = 2};
  const SyntheticWeights weights(1, 0, {row, column, one, other});
  for (const WeightSpec& spec : {o, norm})
    expect_rows(weights, spec, {{0, 64}, {0, 7}, {7, 8}, {8, 64}, {5, 6}, {3, 9}, {60, 61}});
  EXPECT_EQ(weights.load_rows(norm, 5, 6).at(0), 0);
}

TEST(SelfWeights, AnEditThatBfloat16CannotHoldIsRefused) {
  const WeightSpec o = {"model.layers.1.self_attn.o_proj.weight", {64, 64}};
  for (const double scale : {1.1, 1e300}) {
    const SyntheticWeights weights(1, 0, {{.name = o.name, .row = 0, .scale = scale}});
    EXPECT_THROW(weights.load(o), Error) << scale;
  }
}

TEST(SelfWeights, AStarStandsForDigits) {
  const auto names = [](const std::string& pattern, const std::string& name) {
    return names_weight({.name = pattern}, name);
  };
  const std::string expert = "model.layers.12.mlp.experts.3.down_proj.weight";
  EXPECT_TRUE(names(expert, expert));
  EXPECT_TRUE(names("model.layers.*.mlp.experts.*.down_proj.weight", expert));
  EXPECT_FALSE(names("model.layers.*.mlp.down_proj.weight", expert));
  EXPECT_FALSE(names("model.layers.*.mlp.*.down_proj.weight", expert)) << "letters are no digits";
  EXPECT_FALSE(names("model.layers.*", expert));
  EXPECT_TRUE(names("*", "12"));
  EXPECT_FALSE(names("*", ""));
}

// Sum of the nibbles of a lane, less 30, one element at a time.
int bell(const std::string& name, int64_t i) {
  const int lane = PhiloxStream(1, name).lane16(static_cast<uint64_t>(i));
  return (lane & 15) + (lane >> 4 & 15) + (lane >> 8 & 15) + (lane >> 12) - 30;
}

struct ScaleRow {
  WeightSpec spec;
  double scale;
};

// fan: 2^(g - k) with 4^k >= 85 * last dimension; abs: 2^g.
const std::vector<ScaleRow> kScales = {
    {{"model.layers.0.self_attn.q_b_proj.lora_A.weight", {8, 32}}, 0x1p-6},    // fan, g 0, k 6
    {{"model.layers.0.self_attn.q_b_proj.lora_B.weight", {128, 8}}, 0x1p-10},  // abs
    {{"model.layers.0.self_attn.q_b_proj.weight", {128, 32}}, 0x1p-4},         // fan, g 2, k 6
    {{"model.layers.0.self_attn.indexer.weights_proj.weight", {1, 771}}, 0x1p-8},
    {{"model.layers.0.self_attn.indexer.weights_proj.weight", {1, 772}}, 0x1p-9},
    {{"lm_head.weight", {4, 64}}, 0x1p-6},
};

TEST(SelfWeights, ValuesAreScaledBells) {
  const SyntheticWeights weights(1);
  for (const ScaleRow& row : kScales) {
    const HostTensor tensor = weights.load(row.spec);
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      ASSERT_EQ(tensor.at(i), bell(row.spec.name, i) * row.scale) << row.spec.name << i;
    }
  }
}

TEST(SelfWeights, IdentityNamesTheSeed) {
  EXPECT_EQ(SyntheticWeights(17).identity(), "synthetic:17");
}

TEST(SelfWeights, ShapeByNameAgreesWithTheList) {
  for (const char* name : {"tiny", "small"}) {
    const ModelConfig config = io::read_config(name);
    for (const WeightSpec& spec : weight_specs(config)) {
      EXPECT_EQ(weight_shape(config, spec.name), spec.shape) << spec.name;
    }
  }
}

// Sizes of the released model: no two dimensions alike.
TEST(SelfWeights, ShapesAreOutByIn) {
  ModelConfig config = io::read_config("full");
  config.n_shared_experts = 3;
  const auto shape = [&](const std::string& name) {
    return *weight_shape(config, "model.layers.3." + name);
  };
  EXPECT_EQ(shape("self_attn.q_a_proj.weight"), (Shape{1536, 7168}));
  EXPECT_EQ(shape("self_attn.q_b_proj.weight"), (Shape{24576, 1536}));
  EXPECT_EQ(shape("self_attn.kv_a_proj_with_mqa.weight"), (Shape{576, 7168}));
  EXPECT_EQ(shape("self_attn.kv_a_layernorm.weight"), Shape{512});
  EXPECT_EQ(shape("self_attn.kv_b_proj.weight"), (Shape{32768, 512}));
  EXPECT_EQ(shape("self_attn.o_proj.weight"), (Shape{7168, 16384}));
  EXPECT_EQ(shape("self_attn.indexer.wq_b.weight"), (Shape{8192, 1536}));
  EXPECT_EQ(shape("self_attn.indexer.wk.weight"), (Shape{128, 7168}));
  EXPECT_EQ(shape("self_attn.indexer.weights_proj.weight"), (Shape{64, 7168}));
  EXPECT_EQ(shape("mlp.gate.weight"), (Shape{256, 7168}));
  EXPECT_EQ(shape("mlp.gate.e_score_correction_bias"), Shape{256});
  EXPECT_EQ(shape("mlp.experts.255.up_proj.weight"), (Shape{2048, 7168}));
  EXPECT_EQ(shape("mlp.experts.255.down_proj.weight"), (Shape{7168, 2048}));
  EXPECT_EQ(shape("mlp.shared_experts.gate_proj.weight"), (Shape{6144, 7168}));
  EXPECT_EQ(shape("mlp.shared_experts.down_proj.weight"), (Shape{7168, 6144}));
  EXPECT_EQ(weight_shape(config, "model.layers.2.mlp.down_proj.weight"), (Shape{7168, 18432}));
  EXPECT_EQ(weight_shape(config, "lm_head.weight"), (Shape{129280, 7168}));
}

TEST(SelfWeights, UnknownNamesHaveNoShape) {
  const ModelConfig tiny = io::read_config("tiny");
  for (const char* name :
       {"", "lm_head", "model.layers.2.input_layernorm.weight", "model.layers.01.mlp.gate.weight",
        "model.layers.1.mlp.experts.4.up_proj.weight", "model.layers.1.mlp.experts..up_proj.weight",
        "model.layers.1.mlp.experts.1.up_proj", "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate_proj.weight",
        "model.layers.99999999999999999999.mlp.gate.weight"}) {
    EXPECT_FALSE(weight_shape(tiny, name)) << name;
  }
}

TEST(SelfWeights, BuffersAndIndexerAreKnownByName) {
  EXPECT_TRUE(is_buffer("model.layers.1.mlp.gate.e_score_correction_bias"));
  EXPECT_FALSE(is_buffer("model.layers.1.mlp.gate.weight"));
  EXPECT_TRUE(is_indexer("model.layers.0.self_attn.indexer.wq_b.weight"));
  EXPECT_FALSE(is_indexer("model.layers.0.self_attn.q_b_proj.weight"));
}

std::vector<int64_t> head(const std::vector<int64_t>& values, size_t count) {
  return {values.begin(), values.begin() + static_cast<int64_t>(count)};
}

TEST(SelfBatch, TokensMatchTheTestVectors) {
  const Batch tiny = make_batch(io::find_case("tiny"));
  EXPECT_EQ(head(tiny.input_ids, 6), (std::vector<int64_t>{57, 27, 34, 33, 82, 98}));
  const Batch small = make_batch(io::find_case("small"));
  EXPECT_EQ(head(small.input_ids, 6), (std::vector<int64_t>{5748, 2710, 3415, 3331, 8245, 9848}));
  EXPECT_EQ((std::vector<int64_t>{small.input_ids.end() - 3, small.input_ids.end()}),
            (std::vector<int64_t>{8645, 9871, 138}));
}

TEST(SelfBatch, IndexChoosesAnotherStream) {
  const Batch third = make_batch(io::find_case("tiny"), 3);  // first tokens made by numpy
  EXPECT_EQ(head(third.input_ids, 8), (std::vector<int64_t>{31, 26, 27, 56, 19, 1, 23, 44}));
}

TEST(SelfBatch, LastRowIsPaddedOnTheLeft) {
  const Batch batch = make_batch(io::find_case("tiny"));
  for (int64_t s = 0; s < batch.S; ++s) {
    EXPECT_TRUE(batch.valid(0, s));
    EXPECT_EQ(batch.valid(1, s), s >= 5) << s;
    EXPECT_EQ(batch.position_ids[s], s);
    EXPECT_EQ(batch.position_ids[batch.S + s], std::max<int64_t>(s - 5, 0)) << s;
  }
}

TEST(SelfBatch, LabelsSkipPaddingItsNeighbourAndTheFirstQuarter) {
  Case c = io::find_case("tiny");
  c.pad = 11;
  const Batch batch = make_batch(c);
  for (int64_t s = 0; s < batch.S; ++s) {
    const int64_t second = batch.S + s;
    EXPECT_EQ(batch.labels[s], s < 8 ? -100 : batch.input_ids[s]) << s;
    EXPECT_EQ(batch.labels[second], s < 12 ? -100 : batch.input_ids[second]) << s;
  }
}

TEST(SelfBatch, PositionsStandStillOverAHole) {
  Batch batch;
  batch.B = 1;
  batch.S = 5;
  batch.attention_mask = {0, 1, 0, 1, 1};
  set_positions(batch);
  EXPECT_EQ(batch.position_ids, (std::vector<int64_t>{0, 0, 0, 1, 2}));
}

TEST(SelfBatch, PaddingAtTheRightAndFarPositions) {
  const Batch right = make_batch(io::find_case("tiny-rightpad"));
  EXPECT_TRUE(right.valid(1, 0));
  EXPECT_TRUE(right.valid(1, 27));
  for (int64_t s = 28; s < 33; ++s) {
    EXPECT_FALSE(right.valid(1, s)) << s;
    EXPECT_EQ(right.labels[33 + s], kIgnoredLabel) << s;
    EXPECT_EQ(right.position_ids[33 + s], 27) << s;
  }
  const Batch far = make_batch(io::find_case("tiny-far"));
  const Batch near = make_batch(io::find_case("tiny-wide"));
  for (size_t i = 0; i < far.position_ids.size(); ++i)
    EXPECT_EQ(far.position_ids[i], near.position_ids[i] + 100000) << i;
  EXPECT_EQ(far.input_ids, near.input_ids);
}

std::string refusal(const Batch& batch, const ModelConfig& config) {
  try {
    validate(batch, config, "tokens.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::artefact);
    return error.what();
  }
  return "accepted";
}

TEST(SelfBatch, EveryCaseMakesAValidBatch) {
  for (const Case& c : io::cases())
    EXPECT_EQ(refusal(make_batch(c), c.config), "accepted") << c.name;
}

TEST(SelfBatch, RefusesWhatIsNotABatch) {
  const Case c = io::find_case("tiny");
  const Batch good = make_batch(c);
  Batch bad = good;
  bad.input_ids[33] = 100;
  EXPECT_EQ(refusal(bad, c.config), "tokens.safetensors: input_ids[1,1]: expected 0..99, got 100");
  bad = good;
  bad.input_ids[0] = -1;
  EXPECT_NE(refusal(bad, c.config).find("input_ids[0,0]"), std::string::npos);
  bad = good;
  bad.attention_mask[2] = 2;
  EXPECT_NE(refusal(bad, c.config).find("attention_mask[0,2]: expected 0 or 1"), std::string::npos);
  bad = good;
  bad.labels[3] = -1;
  EXPECT_NE(refusal(bad, c.config).find("labels[0,3]"), std::string::npos);
  bad = good;
  bad.attention_mask.pop_back();
  EXPECT_NE(refusal(bad, c.config).find("attention_mask: number of values"), std::string::npos);
  bad = good;
  bad.chunks = {30, 1};
  EXPECT_NE(refusal(bad, c.config).find("chunks"), std::string::npos);
  bad = good;
  bad.S = 0;
  EXPECT_NE(refusal(bad, c.config).find("at least one row"), std::string::npos);
}

TEST(SelfCase, SparseCasesExerciseSelection) {
  for (const Case& c : io::cases()) EXPECT_EQ(exercises_selection(c), c.sparse) << c.name;
}

TEST(SelfCase, HalfOfTheJudgedRowsIsEnough) {
  Case c = io::find_case("tiny-square");  // S 16, index_topk 8: 16 of 32 rows
  EXPECT_TRUE(exercises_selection(c));
  c.pad = 2;  // 8 + 6 of 30 rows
  EXPECT_FALSE(exercises_selection(c));
}

}  // namespace
}  // namespace dsv32
