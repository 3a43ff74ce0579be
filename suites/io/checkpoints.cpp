// Checkpoint folders: made, read fused and unfused, refused with all complaints at once, checked.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

using Tensors = std::map<std::string, HostTensor>;

const Case& tiny() { return io::find_case("tiny"); }

Tensors synthetic_tensors(const ModelConfig& config, uint64_t seed = 1) {
  Tensors out;
  const SyntheticWeights weights(seed);
  for (const WeightSpec& spec : weight_specs(config)) out.emplace(spec.name, weights.load(spec));
  return out;
}

void put_single(const Folder& folder, const Tensors& tensors) {
  put_tensors(folder / "model.safetensors", {}, {tensors.begin(), tensors.end()});
}

/// Opens a folder that holds `tensors` in one file.
std::string opened_refusal(const Tensors& tensors) {
  const Folder folder;
  put_single(folder, tensors);
  return refusal([&] { io::open_checkpoint(folder.path(), tiny().config); });
}

void expect_synthetic(const WeightSource& source, const Case& c) {
  const SyntheticWeights weights(c);
  for (const WeightSpec& spec : weight_specs(c.config)) {
    EXPECT_TRUE(source.load(spec).identical(weights.load(spec))) << spec.name;
  }
}

/// Rows of every tensor, those of a fused one included.
void expect_synthetic_rows(const WeightSource& source, const Case& c) {
  const SyntheticWeights weights(c);
  for (const WeightSpec& spec : weight_specs(c.config)) {
    const int64_t rows = spec.shape[0], third = rows / 3;
    const std::vector<std::pair<int64_t, int64_t>> ranges = {
        {0, third}, {third, rows}, {third, third}};
    for (const auto& [begin, end] : ranges)
      EXPECT_TRUE(source.load_rows(spec, begin, end).identical(weights.load_rows(spec, begin, end)))
          << spec.name << " rows " << begin << " to " << end;
    EXPECT_THROW(source.load_rows(spec, third, rows + 1), Error) << spec.name;
  }
}

/// The three tensors of every expert as the two fused ones of transformers 5.
Tensors fused(const ModelConfig& config) {
  Tensors out = synthetic_tensors(config);
  const int64_t E = config.n_routed_experts, I = config.moe_intermediate_size,
                hidden = config.hidden_size;
  for (int64_t layer = config.first_k_dense_replace; layer < config.num_hidden_layers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    HostTensor gate_up(DType::float32, {E, 2 * I, hidden}), down(DType::float32, {E, hidden, I});
    auto* to_gate_up = gate_up.data<float>().data();
    auto* to_down = down.data<float>().data();
    for (int64_t e = 0; e < E; ++e) {
      for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
        auto node = out.extract(prefix + std::to_string(e) + "." + part + ".weight");
        const auto values = std::as_const(node.mapped()).data<float>();
        float*& to = std::string(part) == "down_proj" ? to_down : to_gate_up;
        to = std::copy(values.begin(), values.end(), to);
      }
    }
    out.emplace(prefix + "gate_up_proj", gate_up);
    out.emplace(prefix + "down_proj", down);
  }
  return out;
}

TEST(SelfCheckpoints, MadeOnesReadBackBitForBit) {
  for (const char* name : {"tiny", "tiny-bias"}) {
    const Case& c = io::find_case(name);
    const Folder folder;
    io::make_checkpoint(c, folder.path(), {});
    const auto source = io::open_checkpoint(folder.path(), io::read_config(folder.path().string()));
    expect_synthetic(*source, c);
    expect_synthetic_rows(*source, c);
    EXPECT_EQ(source->identity(), "synthetic:1");
  }
}

TEST(SelfCheckpoints, SmallShardsHoldTheSameModel) {
  const Folder folder;
  io::make_checkpoint(tiny(), folder.path(), {.shard_bytes = 20'000, .dtype = DType::float32});
  const auto files =
      std::count_if(fs::directory_iterator(folder.path()), fs::directory_iterator(),
                    [](const auto& entry) { return entry.path().extension() == ".safetensors"; });
  EXPECT_GT(files, 10);
  expect_synthetic(*io::open_checkpoint(folder.path(), tiny().config), tiny());
  // A second one with other shards leaves nothing of the first.
  io::make_checkpoint(tiny(), folder.path(), {});
  EXPECT_TRUE(fs::exists(folder / "model-00001-of-00001.safetensors"));
  EXPECT_FALSE(fs::exists(folder / "model-00002-of-00012.safetensors"));
  expect_synthetic(*io::open_checkpoint(folder.path(), tiny().config), tiny());
}

TEST(SelfCheckpoints, MadeOnesHaveTheReleasedLayout) {
  const Folder folder;
  io::make_checkpoint(tiny(), folder.path(), {});
  const io::SafetensorsFile file(folder / "model-00001-of-00001.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensors().at("model.norm.weight").stored, "BF16");
  EXPECT_EQ(file.tensors().at("model.layers.1.mlp.gate.e_score_correction_bias").stored, "F32");
  EXPECT_TRUE(file.tensors().contains("model.layers.1.mlp.experts.3.up_proj.weight"));
  const std::string config = io::read_file(folder / "config.json");
  EXPECT_TRUE(
      has(config, {"\"deepseek_v32\"", "DeepseekV32ForCausalLM", "\"torch_dtype\": \"bfloat16\""}));
  const std::string text = io::read_file(folder / "dsv32_case.json");
  EXPECT_TRUE(has(text, {"\"name\":\"tiny\"", "\"mask\":\"given\"", "\"seed\":1"}));
  EXPECT_EQ(io::case_from_metadata(text).name, "tiny");
}

TEST(SelfCheckpoints, NeverOverwriteAnotherCheckpoint) {
  const Folder folder;
  put(folder / "model.safetensors", "precious");
  const std::string text =
      refusal([&] { io::make_checkpoint(tiny(), folder.path(), {}); }, ExitCode::usage);
  EXPECT_TRUE(has(text, {"model.safetensors", "an empty folder"})) << text;
  EXPECT_EQ(bytes_of(folder / "model.safetensors"), "precious");
  put(folder / "file", "");
  refusal([&] { io::make_checkpoint(tiny(), folder / "file", {}); }, ExitCode::environment);
}

TEST(SelfCheckpoints, FusedExpertsAreTheSameBits) {
  const Folder folder;
  put_single(folder, fused(tiny().config));
  const auto source = io::open_checkpoint(folder.path(), tiny().config);
  expect_synthetic(*source, tiny());
  expect_synthetic_rows(*source, tiny());
}

TEST(SelfCheckpoints, EveryFloatTypeIsRead) {
  for (DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
    const Folder folder;
    Tensors tensors = synthetic_tensors(tiny().config);
    for (auto& [name, tensor] : tensors) tensor = tensor.cast(dtype);
    put_single(folder, tensors);
    const auto source = io::open_checkpoint(folder.path(), tiny().config);
    const WeightSpec spec = weight_specs(tiny().config).front();
    EXPECT_EQ(source->load(spec).dtype(), dtype == DType::float64 ? dtype : DType::float32);
    EXPECT_TRUE(source->load(spec).cast(DType::float32).identical(SyntheticWeights(1).load(spec)));
  }
}

TEST(SelfCheckpoints, IdentityChangesWithOneValue) {
  const Folder folder;
  Tensors tensors = synthetic_tensors(tiny().config);
  put_single(folder, tensors);
  EXPECT_EQ(io::open_checkpoint(folder.path(), tiny().config)->identity(), "synthetic:1");
  tensors.at("model.norm.weight").data<float>()[0] += 1;
  put_single(folder, tensors);
  const std::string changed = io::open_checkpoint(folder.path(), tiny().config)->identity();
  EXPECT_TRUE(changed.starts_with("sha256:")) << changed;
  put_single(folder, synthetic_tensors(tiny().config, 2));
  EXPECT_NE(io::open_checkpoint(folder.path(), tiny().config)->identity(), changed);
}

TEST(SelfCheckpoints, DigestIsThatOfTheFormatsPage) {
  const Folder folder;
  io::make_checkpoint(tiny(), folder.path(), {});
  // Under the case of another seed these weights are not the synthetic ones: their digest is their
  // name.
  Case other = tiny();
  other.seed = 7;
  put(folder / "dsv32_case.json", io::case_json(other));
  EXPECT_TRUE(io::open_checkpoint(folder.path(), tiny().config)
                  ->identity()
                  .starts_with("sha256:3f3230e85acf3f9b"));
}

TEST(SelfCheckpoints, IgnoreTheExtraPredictionLayer) {
  const Folder folder;
  Tensors tensors = synthetic_tensors(tiny().config);
  tensors.emplace("model.layers.2.eh_proj.weight", HostTensor(DType::uint8, {3}));
  put_single(folder, tensors);
  expect_synthetic(*io::open_checkpoint(folder.path(), tiny().config), tiny());
}

TEST(SelfCheckpoints, ListEveryComplaintAtOnce) {
  Tensors tensors = synthetic_tensors(tiny().config);
  tensors.erase("model.norm.weight");
  tensors.erase("model.layers.1.mlp.experts.2.up_proj.weight");
  tensors.emplace("model.layers.0.extra", HostTensor(DType::float32, {1}));
  tensors["lm_head.weight"] = HostTensor(DType::float32, {64, 100});
  tensors["model.layers.0.input_layernorm.weight"] = HostTensor(DType::int32, {64});
  const std::string text = opened_refusal(tensors);
  EXPECT_TRUE(has(
      text, {"missing 2: model.layers.1.mlp.experts.2.up_proj.weight, model.norm.weight",
             "unexpected 1: model.layers.0.extra", "lm_head.weight [64,100] instead of [100,64]",
             "wrong dtype 1: model.layers.0.input_layernorm.weight I32"}))
      << text;
}

TEST(SelfCheckpoints, KeepALongListShort) {
  const std::string text =
      opened_refusal({{"model.norm.weight", HostTensor(DType::float32, {64})}});
  EXPECT_TRUE(has(text, {"missing 50:", "and 30 more"})) << text;
  EXPECT_LT(text.size(), 4000U);
}

TEST(SelfCheckpoints, RefuseExpertsGivenTwice) {
  Tensors tensors = synthetic_tensors(tiny().config);
  tensors.merge(fused(tiny().config));
  EXPECT_TRUE(has(opened_refusal(tensors), {"unexpected 2: model.layers.1.mlp.experts.down_proj"}));
}

TEST(SelfCheckpoints, RefuseAFolderWithoutAny) {
  const Folder folder;
  EXPECT_TRUE(has(refusal([&] { io::open_checkpoint(folder.path(), tiny().config); }),
                  {"a folder without any"}));
  EXPECT_TRUE(has(refusal([&] { io::open_checkpoint(folder / "none", tiny().config); }),
                  {"no folder of that name"}));
}

// --- the index ----------------------------------------------------------------------------------

struct Edit {
  std::string from, to;
  std::vector<std::string> says;
};

TEST(SelfCheckpoints, RefuseEveryBrokenIndex) {
  const Folder folder;
  io::make_checkpoint(tiny(), folder.path(), {.shard_bytes = 100'000});
  const fs::path path = folder / "model.safetensors.index.json";
  const std::string good = io::read_file(path);
  const std::string norm = "\"model.norm.weight\": \"model-00003-of-00003.safetensors\"";
  const std::vector<Edit> edits = {
      {"weight_map", "weights_map", {"weight_map", "an object"}},
      {norm,
       "\"model.norm.weight\": \"../model-00003-of-00003.safetensors\"",
       {"without a folder", "../model"}},
      {norm, "\"model.norm.weight\": \"/etc/passwd\"", {"without a folder"}},
      {norm, "\"model.norm.weight\": \"..\"", {"without a folder"}},
      {norm, "\"model.norm.weight\": \"\"", {"without a folder"}},
      {norm, "\"model.norm.weight\": \"a\\u0000b\"", {"without a folder"}},
      {norm, "\"model.norm.weight\": 3", {"weight_map.model.norm.weight", "a file name"}},
      {norm,
       "\"model.norm.weight\": \"none.safetensors\"",
       {"model-00003-of-00003.safetensors", "not listed 1: model.norm.weight"}},
      {norm,
       "\"model.norm.weight\": \"model-00001-of-00003.safetensors\"",
       {"missing 1: model.norm.weight"}},
      {norm,
       "\"model.norm.weight2\": \"model-00003-of-00003.safetensors\"",
       {"missing 1: model.norm.weight2", "not listed 1: model.norm.weight"}},
      {norm, norm + "," + norm, {"duplicate key"}},
      {"\"total_size\": ",
       "\"total_size\": 1",
       {"metadata.total_size", "the sum over the shards"}}};
  for (const Edit& edit : edits) {
    std::string text = good;
    const size_t at = text.find(edit.from);
    ASSERT_NE(at, std::string::npos) << edit.from;
    put(path, text.replace(at, edit.from.size(), edit.to));
    const std::string said = refusal([&] { io::open_checkpoint(folder.path(), tiny().config); });
    EXPECT_TRUE(has(said, edit.says)) << edit.to << " -> " << said;
  }
  put(path, good);
  expect_synthetic(*io::open_checkpoint(folder.path(), tiny().config), tiny());
}

TEST(SelfCheckpoints, RefuseATruncatedOrMissingShardByName) {
  const Folder folder;
  io::make_checkpoint(tiny(), folder.path(), {.shard_bytes = 100'000});
  const fs::path shard = folder / "model-00002-of-00003.safetensors";
  fs::resize_file(shard, fs::file_size(shard) - 1);
  EXPECT_TRUE(has(refusal([&] { io::open_checkpoint(folder.path(), tiny().config); }),
                  {"model-00002-of-00003.safetensors", "truncated"}));
  fs::remove(shard);
  EXPECT_TRUE(has(refusal([&] { io::open_checkpoint(folder.path(), tiny().config); }),
                  {"model-00002-of-00003.safetensors", "No such file"}));
}

// --- weights check ------------------------------------------------------------------------------

/// A made checkpoint in float32 with one value of model.norm.weight replaced.
io::CheckpointReport check_with(float value) {
  const Folder folder;
  io::make_checkpoint(tiny(), folder.path(), {.dtype = DType::float32});
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    if (entry.path().string().find("model") != std::string::npos) fs::remove(entry.path());
  }
  Tensors tensors = synthetic_tensors(tiny().config);
  tensors.at("model.norm.weight").data<float>()[3] = value;
  put_single(folder, tensors);
  return io::check_checkpoint(folder.path(), true);
}

TEST(SelfCheckpoints, CheckPassesAMadeOne) {
  const Folder folder;
  io::make_checkpoint(tiny(), folder.path(), {});
  const io::CheckpointReport report = io::check_checkpoint(folder.path(), true);
  EXPECT_TRUE(report.good) << report.text;
  EXPECT_TRUE(has(report.text, {"51 tensors, 110372 values", "every value is finite",
                                "equal to the synthetic weights of case tiny, seed 1"}))
      << report.text;
  fs::remove(folder / "dsv32_case.json");
  EXPECT_TRUE(has(io::check_checkpoint(folder.path(), true).text, {"not compared with synthetic"}));
}

TEST(SelfCheckpoints, CheckNamesAWrongValue) {
  const io::CheckpointReport report = check_with(5);
  EXPECT_FALSE(report.good);
  EXPECT_TRUE(has(report.text, {"different from", "model.norm.weight element 3 = 5.0"}))
      << report.text;
}

TEST(SelfCheckpoints, CheckNamesAValueThatIsNotFinite) {
  const io::CheckpointReport report = check_with(-INFINITY);
  EXPECT_FALSE(report.good);
  EXPECT_TRUE(has(report.text, {"not finite: 1: model.norm.weight element 3 = -inf"}))
      << report.text;
}

}  // namespace
}  // namespace dsv32::suites
