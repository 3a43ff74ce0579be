// FP8 checkpoints, the inference demo's names and its files of ranks: read to the bit, and every
// fault of their files refused.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <utility>

#include "src/io/checkpoint/names.h"
#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

/// A stored tensor: the type's word in the file and the bytes.
struct Raw {
  std::string stored;
  HostTensor data;
};
using RawTensors = std::map<std::string, Raw>;

const Case& fp8_case() { return io::find_case("tiny-fp8"); }

void write_raw(const fs::path& path, const RawTensors& tensors) {
  std::vector<std::pair<std::string, io::TensorEntry>> specs;
  for (const auto& [name, raw] : tensors)
    specs.push_back(
        {name, {.dtype = raw.data.dtype(), .shape = raw.data.shape(), .stored = raw.stored}});
  io::SafetensorsWriter writer(path, {}, specs);
  for (const auto& [name, raw] : tensors) writer.append(raw.data);
  writer.finish();
}

/// Every tensor of a made checkpoint.
const RawTensors& made_tensors() {
  static const RawTensors tensors = [] {
    const Folder folder;
    io::make_checkpoint(fp8_case(), folder.path(), {.dtype = DType::float32});
    RawTensors out;
    const io::SafetensorsFile file(folder / "model-00001-of-00001.safetensors");
    for (const auto& [name, entry] : file.tensors())
      out[name] = {std::string(entry.stored),
                   entry.readable ? file.read(name) : file.read_bytes(name, 0, entry.shape)};
    return out;
  }();
  return tensors;
}

std::unique_ptr<WeightSource> opened(const Folder& folder, const RawTensors& tensors) {
  write_raw(folder / "model.safetensors", tensors);
  return io::open_checkpoint(folder.path(), fp8_case().config);
}

void expect_same(const WeightSource& got, const WeightSource& want, const ModelConfig& config) {
  for (const WeightSpec& spec : weight_specs(config)) {
    ASSERT_TRUE(got.load(spec).identical(want.load(spec))) << spec.name;
    const int64_t rows = spec.shape[0], third = rows / 3;
    for (const auto& [begin, end] : {std::pair{third, rows}, {int64_t{0}, third}, {third, third}})
      ASSERT_TRUE(got.load_rows(spec, begin, end).identical(want.load_rows(spec, begin, end)))
          << spec.name << " rows " << begin << " to " << end;
  }
}

/// 2^exponent times 8 + mantissa, or the subnormal, by the format's own words.
double value_of(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double size =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code >= 128 ? -size : size;
}

TEST(SelfFp8Checkpoints, MadeOnesReadBackBitForBit) {
  const Folder folder;
  io::make_checkpoint(fp8_case(), folder.path(), {.shard_bytes = 50'000});
  const auto source = io::open_checkpoint(folder.path(), fp8_case().config);
  const SyntheticWeights weights(fp8_case());
  expect_same(*source, weights, fp8_case().config);
  EXPECT_EQ(source->identity(), "synthetic-fp8:1");
  EXPECT_EQ(source->fp8(), fp8_case().config.fp8);
  for (const WeightSpec& spec : weight_specs(fp8_case().config)) {
    const auto got = source->load_fp8(spec), want = weights.load_fp8(spec);
    ASSERT_EQ(got.has_value(), is_fp8_weight(spec.name)) << spec.name;
    if (!got) continue;
    EXPECT_TRUE(got->codes.identical(want->codes)) << spec.name;
    EXPECT_TRUE(got->scales.identical(want->scales)) << spec.name;
  }
  const std::string config = io::read_file(folder / "config.json");
  EXPECT_TRUE(has(config, {"quantization_config", "\"fp8\""})) << config;
  EXPECT_TRUE(has(io::read_file(folder / "dsv32_case.json"), {"\"weights\":\"synthetic-fp8\""}));
}

TEST(SelfFp8Checkpoints, AValueIsItsCodeTimesItsScale) {
  RawTensors tensors = made_tensors();
  const std::string name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight";  // [36,96]
  uint8_t next = 0;
  for (uint8_t& code : tensors[name].data.data<uint8_t>()) {
    code = next++;
    if ((code & 0x7f) == 0x7f) code = 0;  // no NaN
  }
  const auto scales = tensors[name + "_scale_inv"].data.data<float>();
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.1f + 0.3f * static_cast<float>(i);
  const Folder folder;
  const auto source = opened(folder, tensors);
  const WeightSpec spec{name, {36, 96}};
  const HostTensor values = source->load(spec);
  for (int64_t i = 0; i < values.numel(); ++i) {
    const int64_t row = i / 96, column = i % 96;
    const float scale = scales[row / 16 * 6 + column / 16];
    const auto want = static_cast<float>(value_of(tensors[name].data.data<uint8_t>()[i]) *
                                         static_cast<double>(scale));
    ASSERT_EQ(std::bit_cast<uint32_t>(values.data<float>()[i]), std::bit_cast<uint32_t>(want)) << i;
  }
  EXPECT_TRUE(source->identity().starts_with("sha256:"));
}

TEST(SelfFp8Checkpoints, ScalesMayBePowersOfTwoInOneByte) {
  RawTensors plain = made_tensors(), bytes;
  for (auto& [name, raw] : plain) {
    bytes[name] = raw;
    if (!name.ends_with("_scale_inv")) continue;
    HostTensor exponents(DType::uint8, raw.data.shape());
    for (int64_t i = 0; i < exponents.numel(); ++i) {
      const auto exponent = static_cast<uint8_t>(100 + i % 50);
      exponents.data<uint8_t>()[i] = exponent;
      raw.data.data<float>()[i] = std::ldexp(1.0f, exponent - 127);
    }
    bytes[name] = {"F8_E8M0", exponents};
  }
  const Folder one, two;
  expect_same(*opened(one, bytes), *opened(two, plain), fp8_case().config);
}

TEST(SelfFp8Checkpoints, TheDemosNamesAreTheSameModel) {
  const Folder folder;
  io::make_checkpoint(fp8_case(), folder.path(), {.format = io::CheckpointFormat::demo});
  EXPECT_FALSE(fs::exists(folder / "model.safetensors.index.json"));
  const io::SafetensorsFile file(folder / "model0-mp1.safetensors");
  for (const char* name :
       {"embed.weight", "head.weight", "norm.weight", "layers.0.attn_norm.weight",
        "layers.0.attn.wkv_a.scale", "layers.0.attn.q_norm.weight", "layers.0.ffn.w2.weight",
        "layers.1.ffn.gate.bias", "layers.1.ffn.experts.3.w1.scale",
        "layers.1.ffn.shared_experts.w3.weight", "layers.2.attn.indexer.wq_b.scale",
        "layers.2.attn.indexer.k_norm.bias", "layers.2.attn.indexer.weights_proj.weight"})
    EXPECT_TRUE(file.tensors().contains(name)) << name;
  const auto source = io::open_checkpoint(folder.path(), fp8_case().config);
  expect_same(*source, SyntheticWeights(fp8_case()), fp8_case().config);
}

TEST(SelfFp8Checkpoints, NamesGoThereAndBack) {
  for (const WeightSpec& spec : weight_specs(fp8_case().config)) {
    EXPECT_EQ(io::released_name(io::demo_name(spec.name)), spec.name);
    const std::string scale = spec.name + "_scale_inv";
    if (is_fp8_weight(spec.name)) EXPECT_EQ(io::released_name(io::demo_name(scale)), scale);
    EXPECT_EQ(io::released_name(spec.name), std::nullopt);
  }
}

/// Rows or columns [first, last) of a matrix of any type.
Raw part_of(const Raw& raw, bool rows, int64_t first, int64_t last) {
  const Shape& shape = raw.data.shape();
  Shape part = shape;
  part[rows ? 0 : 1] = last - first;
  HostTensor out(raw.data.dtype(), part);
  const int64_t item = item_size(raw.data.dtype()), width = shape[1] * item;
  const int64_t bytes = part[1] * item, skipped = rows ? 0 : first * item;
  for (int64_t row = 0; row < part[0]; ++row)
    std::copy_n(raw.data.raw() + (row + (rows ? first : 0)) * width + skipped, bytes,
                out.raw() + row * bytes);
  return {raw.stored, out};
}

/// The files of two ranks, as the demo's converter shares a model out.
std::array<RawTensors, 2> of_two_ranks(const RawTensors& tensors, const ModelConfig& config) {
  std::array<RawTensors, 2> ranks;
  for (const auto& [name, raw] : tensors) {
    const std::string weight = name.substr(0, name.rfind("_scale_inv"));
    const std::string demo = io::demo_name(name);
    const io::RankSplit split = io::rank_split(weight);
    for (size_t rank = 0; rank < 2; ++rank) {
      if (split == io::RankSplit::none) {
        ranks[rank][demo] = raw;
      } else if (split == io::RankSplit::expert) {
        const int64_t first = static_cast<int64_t>(rank) * config.n_routed_experts / 2;
        const int64_t expert = io::parse_expert(weight)->expert;
        if (expert >= first && expert < first + config.n_routed_experts / 2)
          ranks[rank][demo] = raw;
      } else {
        const bool rows = split == io::RankSplit::rows;
        const int64_t half = raw.data.shape()[rows ? 0 : 1] / 2, at = static_cast<int64_t>(rank);
        ranks[rank][demo] = part_of(raw, rows, at * half, (at + 1) * half);
      }
    }
  }
  return ranks;
}

/// A case whose halves are whole blocks.
Case even_case() {
  return io::case_of_words(
      R"({"config":"tiny","overrides":{"quantization_config":{"quant_method":"fp8",)"
      R"("weight_block_size":[16,16],"scale_fmt":"ue8m0"}},"seed":3,"B":2,"S":32,"pad":5,)"
      R"("bias_offset":0,"chunks":[],"weights":"synthetic-fp8"})");
}

struct Ranks {
  Folder folder;
  std::array<RawTensors, 2> tensors;

  explicit Ranks(const Case& c) {
    const Folder whole;
    io::make_checkpoint(c, whole.path(), {.dtype = DType::float32});
    RawTensors all;
    const io::SafetensorsFile file(whole / "model-00001-of-00001.safetensors");
    for (const auto& [name, entry] : file.tensors())
      all[name] = {std::string(entry.stored),
                   entry.readable ? file.read(name) : file.read_bytes(name, 0, entry.shape)};
    tensors = of_two_ranks(all, c.config);
    fs::copy_file(whole / "config.json", folder / "config.json");
    fs::copy_file(whole / "dsv32_case.json", folder / "dsv32_case.json");
    write();
  }
  void write() const {
    for (size_t rank = 0; rank < 2; ++rank)
      write_raw(folder / ("model" + std::to_string(rank) + "-mp2.safetensors"), tensors[rank]);
  }
};

TEST(SelfFp8Checkpoints, FilesOfRanksAreOneModel) {
  const Case c = even_case();
  Ranks ranks(c);
  const SyntheticWeights weights(c);
  const auto source = io::open_checkpoint(ranks.folder.path(), c.config);
  expect_same(*source, weights, c.config);
  EXPECT_EQ(source->identity(), "synthetic-fp8:3");
  const WeightSpec o{"model.layers.0.self_attn.o_proj.weight", {64, 64}};
  EXPECT_TRUE(source->load_fp8(o)->scales.identical(weights.load_fp8(o)->scales));
  EXPECT_TRUE(io::check_checkpoint(ranks.folder.path(), true).good);

  ranks.tensors[1]["norm.weight"].data = HostTensor(DType::float32, {64});
  ranks.write();
  const io::CheckpointReport report = io::check_checkpoint(ranks.folder.path(), true);
  EXPECT_FALSE(report.good);
  EXPECT_TRUE(has(report.text, {"not the same as in rank 0: 1: norm.weight of rank 1"}))
      << report.text;
  ranks.tensors[1].erase("head.weight");
  ranks.tensors[1]["layers.1.ffn.experts.0.w1.weight"] =
      ranks.tensors[0]["layers.1.ffn.experts.0.w1.weight"];
  ranks.write();
  const std::string text = refusal([&] { io::open_checkpoint(ranks.folder.path(), c.config); });
  EXPECT_TRUE(has(text, {"missing 1: lm_head.weight in 1 of 2 ranks", "twice 1:"})) << text;
  fs::remove(ranks.folder / "model1-mp2.safetensors");
  EXPECT_TRUE(has(refusal([&] { io::open_checkpoint(ranks.folder.path(), c.config); }),
                  {"model1-mp2.safetensors"}));
}

TEST(SelfFp8Checkpoints, FusedExpertsAreStacksOfMatrices) {
  const ModelConfig& config = fp8_case().config;
  RawTensors tensors = made_tensors();
  const int64_t E = config.n_routed_experts, I = config.moe_intermediate_size;
  // 40 rows are two blocks and a half: gate and up share one, so they are quantised as one matrix.
  for (int64_t layer = config.first_k_dense_replace; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    HostTensor codes(DType::uint8, {E, 2 * I, 96}), scales(DType::float32, {E, 5, 6});
    for (int64_t i = 0; i < codes.numel(); ++i) codes.data<uint8_t>()[i] = i % 0x7f;
    for (int64_t i = 0; i < scales.numel(); ++i) scales.data<float>()[i] = 0.5f + 0.25f * (i % 9);
    for (int64_t e = 0; e < E; ++e)
      for (const char* part : {".gate_proj.weight", ".up_proj.weight"})
        for (const char* suffix : {"", "_scale_inv"})
          tensors.erase(prefix + std::to_string(e) + part + suffix);
    tensors[prefix + "gate_up_proj"] = {"F8_E4M3", codes};
    tensors[prefix + "gate_up_proj_scale_inv"] = {"F32", scales};
  }
  const Folder folder;
  const auto source = opened(folder, tensors);
  const WeightSpec up{"model.layers.2.mlp.experts.4.up_proj.weight", {40, 96}};
  const HostTensor values = source->load_rows(up, 7, 40);
  for (int64_t i = 0; i < values.numel(); ++i) {
    const int64_t row = I + 7 + i / 96, column = i % 96;
    const int64_t code = ((4 * 2 * I + row) * 96 + column) % 0x7f;
    const int64_t scale = 4 * 30 + row / 16 * 6 + column / 16;
    ASSERT_EQ(values.at(i), value_of(static_cast<int>(code)) * (0.5 + 0.25 * (scale % 9))) << i;
  }
  EXPECT_TRUE(has(refusal([&] { source->load_fp8(up); }), {"FP8 blocks", "fp8 mode"}));
}

TEST(SelfFp8Checkpoints, ThePredictionLayerIsLeftOutAndSaid) {
  RawTensors tensors = made_tensors();
  const Raw one{"F32", HostTensor(DType::float32, {1})};
  for (const char* name : {"eh_proj.weight", "enorm.weight", "mlp.gate.weight"})
    tensors[std::string("model.layers.4.") + name] = one;
  const Folder folder;
  EXPECT_EQ(opened(folder, tensors)->notes(),
            std::vector<std::string>{"layer 4 predicts further tokens (MTP) and is no part of the "
                                     "model: its 3 tensors are left out"});
  tensors.erase("model.layers.4.eh_proj.weight");
  tensors.erase("model.layers.4.enorm.weight");
  EXPECT_TRUE(has(refusal([&] { opened(folder, tensors); }),
                  {"unexpected 1: model.layers.4.mlp.gate.weight"}));
}

// --- faults -------------------------------------------------------------------------------------

const std::string kQa = "model.layers.0.self_attn.q_a_proj.weight";  // [44,96]: 3 x 6 blocks
const std::string kQaScale = kQa + "_scale_inv";

struct Fault {
  std::string name;
  std::function<void(RawTensors&)> plant;
  std::vector<std::string> says;
};

HostTensor with_value(const HostTensor& tensor, int64_t at, float value) {
  HostTensor out = HostTensor::from_doubles(tensor.dtype(), tensor.shape(), tensor.to_doubles());
  out.data<float>()[at] = value;
  return out;
}

std::vector<Fault> faults() {
  const auto scale_value = [](float value) {
    return [value](RawTensors& t) { t[kQaScale].data = with_value(t[kQaScale].data, 7, value); };
  };
  return {
      {"scale missing",
       [](RawTensors& t) { t.erase(kQaScale); },
       {"FP8 without scales 1: " + kQa, "hint: a converter"}},
      {"thirty scales missing",
       [](RawTensors& t) {
         std::erase_if(t, [n = 0](const auto& item) mutable {
           return item.first.ends_with("_scale_inv") && n++ < 30;
         });
       },
       {"FP8 without scales 30:", "and 10 more"}},
      {"scale transposed",
       [](RawTensors& t) {
         t[kQaScale].data = HostTensor(DType::float32, {6, 3});
       },
       {"wrong shape 1: " + kQaScale + " [6,3] instead of [3,6]"}},
      {"scale of whole blocks alone",
       [](RawTensors& t) {
         t[kQaScale].data = HostTensor(DType::float32, {2, 6});
       },
       {kQaScale + " [2,6] instead of [3,6]"}},
      {"scale of another type",
       [](RawTensors& t) {
         t[kQaScale] = {"BF16", HostTensor(DType::bfloat16, {3, 6})};
       },
       {"wrong dtype 1: " + kQaScale + " BF16 instead of F32 or F8_E8M0"}},
      {"scale NaN", scale_value(NAN), {"no finite factors 1: " + kQaScale + " element 7"}},
      {"scale infinite", scale_value(INFINITY), {"no finite factors 1: " + kQaScale}},
      {"scale negative", scale_value(-1), {"no finite factors 1: " + kQaScale}},
      {"exponent of NaN",
       [](RawTensors& t) {
         HostTensor exponents(DType::uint8, {3, 6});
         exponents.data<uint8_t>()[2] = 255;
         t[kQaScale] = {"F8_E8M0", exponents};
       },
       {"no finite factors 1: " + kQaScale + " element 2"}},
      {"scale left beside a bf16 weight",
       [](RawTensors& t) {
         t[kQa] = {"BF16", HostTensor(DType::bfloat16, {44, 96})};
       },
       {"scales that no FP8 tensor uses 1: " + kQaScale}},
      {"scale of a weight that is not there",
       [](RawTensors& t) { t.erase(kQa); },
       {"missing 1: " + kQa, "scales that no FP8 tensor uses 1: " + kQaScale}},
      {"a norm in FP8",
       [](RawTensors& t) {
         t["model.norm.weight"] = {"F8_E4M3", HostTensor(DType::uint8, {96})};
       },
       {"wrong dtype 1: model.norm.weight F8_E4M3"}},
      {"the other FP8 type",
       [](RawTensors& t) { t[kQa].stored = "F8_E5M2"; },
       {"wrong dtype 1: " + kQa + " F8_E5M2"}},
      {"a tensor under both names",
       [](RawTensors& t) { t["norm.weight"] = t["model.norm.weight"]; },
       {"twice 1: model.norm.weight"}},
      {"codes transposed",
       [](RawTensors& t) {
         t[kQa].data = HostTensor(DType::uint8, {96, 44});
       },
       {"wrong shape 1: " + kQa + " [96,44] instead of [44,96]"}},
      {"several at once",
       [](RawTensors& t) {
         t.erase(kQaScale);
         t.erase("model.norm.weight");
         t["model.layers.0.extra"] = {"F32", HostTensor(DType::float32, {1})};
       },
       {"missing 1: model.norm.weight", "unexpected 1: model.layers.0.extra",
        "FP8 without scales 1: " + kQa}},
      {"correction bias lost",
       [](RawTensors& t) { t.erase("model.layers.1.mlp.gate.e_score_correction_bias"); },
       {"missing 1: model.layers.1.mlp.gate.e_score_correction_bias"}},
  };
}

TEST(SelfFp8Checkpoints, RefuseEveryFault) {
  for (const Fault& fault : faults()) {
    RawTensors tensors = made_tensors();
    fault.plant(tensors);
    const Folder folder;
    const std::string text = refusal([&] { opened(folder, tensors); });
    EXPECT_TRUE(has(text, fault.says)) << fault.name << ": " << text;
  }
}

TEST(SelfFp8Checkpoints, RefuseSeveralShortShardsTogether) {
  const Folder folder;
  io::make_checkpoint(fp8_case(), folder.path(), {.shard_bytes = 50'000});
  for (const char* shard : {"model-00001", "model-00003"})
    for (const auto& entry : fs::directory_iterator(folder.path()))
      if (entry.path().filename().string().starts_with(shard))
        fs::resize_file(entry.path(), fs::file_size(entry.path()) - 1);
  const std::string text = refusal([&] { io::open_checkpoint(folder.path(), fp8_case().config); });
  EXPECT_TRUE(has(text, {"2 that cannot", "model-00001", "model-00003", "truncated"})) << text;
}

TEST(SelfFp8Checkpoints, CheckTellsTypesAndDigest) {
  const Folder folder;
  io::make_checkpoint(fp8_case(), folder.path(), {});
  const io::CheckpointReport quick = io::check_checkpoint(folder.path(), false);
  EXPECT_TRUE(quick.good);
  EXPECT_TRUE(has(quick.text, {"F8_E4M3", "values were not read"})) << quick.text;
  const io::CheckpointReport full = io::check_checkpoint(folder.path(), true);
  EXPECT_TRUE(full.good) << full.text;
  EXPECT_TRUE(has(full.text, {"every value is finite", "sha256 of the model ",
                              "equal to the synthetic weights of case tiny-fp8, seed 1"}))
      << full.text;
}

TEST(SelfFp8Checkpoints, PlainFormatHoldsTheDequantisedValues) {
  const Folder folder;
  const io::MakeCheckpointOptions plain{.dtype = DType::float32,
                                        .format = io::CheckpointFormat::plain};
  io::make_checkpoint(fp8_case(), folder.path(), plain);
  const auto source = io::open_checkpoint(folder.path(), fp8_case().config);
  expect_same(*source, SyntheticWeights(fp8_case()), fp8_case().config);
  EXPECT_EQ(source->fp8(), std::nullopt);
  EXPECT_EQ(source->identity(), "synthetic-fp8:1");
  const std::string text = refusal(
      [&] {
        io::make_checkpoint(fp8_case(), folder.path(), {.format = io::CheckpointFormat::plain});
      },
      ExitCode::usage);
  EXPECT_TRUE(has(text, {"float32", "--format fp8"})) << text;
}

}  // namespace
}  // namespace dsv32::suites
