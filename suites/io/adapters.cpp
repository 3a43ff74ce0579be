// Adapter files in peft's layout: what is written is read again, what is wrong is refused.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

using io::Adapter;
using Tensors = std::vector<std::pair<std::string, HostTensor>>;

constexpr char kQa[] = "base_model.model.model.layers.0.self_attn.q_a_proj.lora_A.weight";
constexpr char kConfig[] = "adapter_config.json";
constexpr char kFile[] = "adapter_model.safetensors";

const ModelConfig& config() { return io::find_case("tiny-wide").config; }

Adapter synthetic_adapter(const LoraTargets& targets) {
  const SyntheticWeights weights(1);
  Adapter adapter{.modules = lora_modules(config(), targets)};
  for (const LoraModule& m : adapter.modules) {
    adapter.tensors[m.a_name()] = weights.load({m.a_name(), m.a_shape()});
    adapter.tensors[m.b_name()] = weights.load({m.b_name(), m.b_shape()});
  }
  return adapter;
}

std::vector<std::string> names_of(const std::vector<LoraModule>& modules) {
  std::vector<std::string> names;
  for (const LoraModule& module : modules) names.push_back(module.name);
  return names;
}

/// A good LM and KL adapter in a folder, to be damaged.
class AdapterFiles : public testing::Test {
 protected:
  AdapterFiles() { io::write_adapter(folder_.path(), config(), synthetic_adapter({})); }

  Adapter read() const { return io::read_adapter(folder_.path(), config()); }
  std::string refused() const {
    return refusal([this] { io::read_adapter(folder_.path(), config()); });
  }
  /// One field of the config replaced, as text.
  void set(const std::string& from, const std::string& to) {
    std::string text = bytes_of(folder_ / kConfig);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from << " in " << text;
    put(folder_ / kConfig, text.replace(at, from.size(), to));
  }
  Tensors tensors() const {
    const io::SafetensorsFile file(folder_ / kFile);
    Tensors all;
    for (const auto& [name, entry] : file.tensors()) all.emplace_back(name, file.read(name));
    return all;
  }
  void replace(const std::string& name, const HostTensor& value) {
    Tensors all = tensors();
    for (auto& [known, tensor] : all)
      if (known == name) tensor = value;
    put_tensors(folder_ / kFile, {{"format", "pt"}}, all);
  }

  Folder folder_;
};

TEST(LoraModules, AreThoseOfTheSpecInTheOrderOfTheWeights) {
  const std::vector<LoraModule> modules = lora_modules(config());
  EXPECT_EQ(modules.size(), 22u);  // two layers: 5 of attention, 3 of the indexer, 3 of an MLP
  EXPECT_EQ(modules.front().name, "model.layers.0.self_attn.q_a_proj");
  EXPECT_EQ(modules.back().name, "model.layers.1.mlp.shared_experts.down_proj");
  EXPECT_TRUE(modules[4].is_kl());
  EXPECT_EQ(modules[4].name, "model.layers.0.self_attn.indexer.wq_b");
  EXPECT_EQ(modules[0].scale(), 2);
}

TEST(LoraModules, ExpertsShareAFusedPairInTheShapeThatPeftSaves) {
  const std::vector<LoraModule> modules =
      lora_modules(config(), {.lm = false, .kl = false, .experts = true});
  ASSERT_EQ(modules.size(), 2u);
  EXPECT_EQ(modules[0].name, "model.layers.1.mlp.experts.gate_up_proj");
  EXPECT_EQ(modules[0].a_shape(), (Shape{16 * 8, 64}));
  EXPECT_EQ(modules[0].b_shape(), (Shape{2 * 32, 16 * 8}));
  EXPECT_EQ(modules[1].a_shape(), (Shape{16 * 8, 32}));
  EXPECT_EQ(modules[1].b_shape(), (Shape{64, 16 * 8}));
}

TEST(AdapterFile, WhatIsWrittenIsReadAgain) {
  for (const LoraTargets& targets :
       {LoraTargets{}, LoraTargets{.kl = false}, LoraTargets{.lm = false},
        LoraTargets{.experts = true}, LoraTargets{.rank = 3, .alpha = 7.5}}) {
    const Folder folder;
    const Adapter written = synthetic_adapter(targets);
    io::write_adapter(folder.path(), config(), written);
    const Adapter read = io::read_adapter(folder.path(), config());
    EXPECT_EQ(names_of(read.modules), names_of(written.modules));
    EXPECT_EQ(read.modules[0].scale(), written.modules[0].scale());
    EXPECT_TRUE(read.warnings.empty());
    ASSERT_EQ(read.tensors.size(), written.tensors.size());
    for (const auto& [name, tensor] : written.tensors)
      EXPECT_TRUE(read.tensors.at(name).identical(tensor)) << name;
  }
}

TEST(AdapterFile, OneModuleAloneIsNamedByItsWholePath) {
  const Folder folder;
  Adapter one = synthetic_adapter({});
  one.modules.resize(1);
  io::write_adapter(folder.path(), config(), one);
  EXPECT_TRUE(has(bytes_of(folder / kConfig), {"\"model.layers.0.self_attn.q_a_proj\""}));
  EXPECT_EQ(names_of(io::read_adapter(folder.path(), config()).modules), names_of(one.modules));
}

TEST_F(AdapterFiles, RankAndAlphaPatternsCountForTheirModules) {
  const LoraModule first = read().modules.front();
  const HostTensor a(DType::float32, {4, first.in}), b(DType::float32, {first.out, 4});
  replace(kQa, a);
  replace("base_model.model.model.layers.0.self_attn.q_a_proj.lora_B.weight", b);
  set("\"rank_pattern\": {}", "\"rank_pattern\": {\"layers.0.self_attn.q_a_proj\": 4}");
  set("\"alpha_pattern\": {}", "\"alpha_pattern\": {\".*0.self_attn.q_a_proj\": 32}");
  EXPECT_EQ(read().modules[0].rank, 4);
  EXPECT_EQ(read().modules[0].scale(), 8);
  EXPECT_EQ(read().modules[1].rank, 8);
}

TEST_F(AdapterFiles, DropoutIsAWarning) {
  set("\"lora_dropout\": 0.0", "\"lora_dropout\": 0.05");
  ASSERT_EQ(read().warnings.size(), 1u);
  EXPECT_TRUE(has(read().warnings[0], {"lora_dropout 0.05", "random"}));
}

TEST_F(AdapterFiles, UnknownFieldsAndIdleTargetsAreWarnings) {
  set("\"bias\": \"none\"", "\"bias\": \"none\", \"new_thing\": 1");
  set("\"down_proj\"", "\"down_proj\", \"lm_head\"");
  ASSERT_EQ(read().warnings.size(), 2u);
  EXPECT_TRUE(has(read().warnings[0], {"new_thing"}));
  EXPECT_TRUE(has(read().warnings[1], {"lm_head"}));
}

TEST_F(AdapterFiles, RegularExpressionsPickModules) {
  set("\"task_type\"", "\"unused\"");
  std::string text = bytes_of(folder_ / kConfig);
  const size_t begin = text.find('[', text.find("\"target_modules\""));
  text.replace(begin, text.find(']', begin) + 1 - begin, "\".*layers\\\\..*_proj\"");
  put(folder_ / kConfig, text);
  EXPECT_TRUE(has(refused(), {"indexer.wk.lora_A", "untargeted"}));
}

TEST_F(AdapterFiles, AnotherRankIsRefused) {
  set("\"r\": 8", "\"r\": 4");
  EXPECT_TRUE(has(refused(), {"lora_A.weight", "rank 4 of adapter_config.json", "got rank 8"}));
}

TEST_F(AdapterFiles, MissingPairIsRefused) {
  Tensors all = tensors();
  std::erase_if(all, [](const auto& entry) { return entry.first == kQa; });
  put_tensors(folder_ / kFile, {}, all);
  EXPECT_TRUE(has(refused(), {"pair lora_A, lora_B", kQa}));
}

TEST_F(AdapterFiles, UnknownModuleIsRefused) {
  Tensors all = tensors();
  all.emplace_back("base_model.model.model.layers.7.self_attn.q_a_proj.lora_A.weight",
                   HostTensor(DType::float32, {8, 64}));
  put_tensors(folder_ / kFile, {}, all);
  EXPECT_TRUE(has(refused(), {"unknown or untargeted", "layers.7.self_attn.q_a_proj"}));
}

TEST_F(AdapterFiles, WrongDtypeIsRefused) {
  replace(kQa, HostTensor(DType::int64, {8, 64}));
  EXPECT_TRUE(has(refused(), {kQa, "F64, F32, BF16 or F16", "I64"}));
}

TEST_F(AdapterFiles, TransposedTensorIsNamedAsSuch) {
  replace(kQa, HostTensor(DType::float32, {64, 8}));
  EXPECT_TRUE(has(refused(), {kQa, "[8,64]", "[64,8]", "transposed"}));
}

TEST_F(AdapterFiles, ValueThatIsNotFiniteIsRefused) {
  HostTensor a(DType::float32, {8, 64});
  a.data<float>()[9] = std::numeric_limits<float>::quiet_NaN();
  replace(kQa, a);
  EXPECT_TRUE(has(refused(), {kQa, "finite", "nan at element 9"}));
}

TEST_F(AdapterFiles, ScaleOtherThanDemandedIsRefused) {
  set("\"lora_alpha\": 16", "\"lora_alpha\": 8");
  const auto read_with = [this](const io::AdapterDemand& demand) {
    return refusal([&] { io::read_adapter(folder_.path(), config(), demand); });
  };
  EXPECT_TRUE(has(read_with({.scale = 2}), {"scale alpha / r", "expected 2", "got 1", "r 8"}));
  EXPECT_TRUE(has(read_with({.rank = 16}), {"rank of", "expected 16", "got 8"}));
  EXPECT_EQ(io::read_adapter(folder_.path(), config(), {.rank = 8, .scale = 1}).modules.size(),
            22u);
}

TEST_F(AdapterFiles, AnotherFunctionThanPlainLoraIsRefused) {
  const std::string good = bytes_of(folder_ / kConfig);
  for (const char* field : {"\"use_dora\": true", "\"use_rslora\": true", "\"lora_bias\": true",
                            "\"modules_to_save\": [\"lm_head\"]", "\"layers_to_transform\": [0]"}) {
    put(folder_ / kConfig, good);
    set("\"task_type\"", std::string(field) + ", \"task_type\"");
    const std::string name(field, 1, std::string(field).find('"', 1) - 1);
    EXPECT_TRUE(has(refused(), {name, "plain LoRA"})) << field;
  }
}

struct BadConfig {
  std::string from, to;
  std::vector<std::string> says;
};

TEST_F(AdapterFiles, ImpossibleConfigsAreRefused) {
  const std::vector<BadConfig> list = {
      {"\"r\": 8", "\"r\": 0", {"r:", "from 1 to", "got 0"}},
      {"\"r\": 8", "\"r\": \"8\"", {"an integer"}},
      {"\"r\": 8", "\"rank\": 8", {"r:", "a missing field"}},
      {"\"lora_alpha\": 16", "\"lora_alpha\": -1", {"lora_alpha", "got -1"}},
      {"\"lora_dropout\": 0.0", "\"lora_dropout\": 1.5", {"[0, 1)"}},
      {"\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", {"\"LORA\"", "IA3"}},
      {"\"bias\": \"none\"", "\"bias\": \"all\"", {"bias", "\"none\""}},
      {"\"rank_pattern\": {}", "\"rank_pattern\": {\"(\": 4}", {"a regular expression"}},
      {"\"rank_pattern\": {}", "\"rank_pattern\": 4", {"an object"}},
      {"\"rank_pattern\": {}", "\"rank_pattern\": {\"(.*)*(.*)*x\": 4}", {"none of them inside"}},
      {"\"rank_pattern\": {}", "\"rank_pattern\": {\"(a+b)+{2,}x\": 4}", {"none of them inside"}},
      {"\"rank_pattern\": {}", "\"rank_pattern\": {\".*a.*b.*c.*d.*\": 4}", {"at most 4"}},
      {"\"target_parameters\": null", "\"target_parameters\": 1", {"a list of names"}},
      {"{", "[", {"JSON"}}};
  const std::string good = bytes_of(folder_ / kConfig);
  for (const BadConfig& bad : list) {
    put(folder_ / kConfig, good);
    set(bad.from, bad.to);
    EXPECT_TRUE(has(refused(), bad.says)) << bad.to << "\n" << refused();
  }
}

TEST_F(AdapterFiles, AbsentFilesAreRefused) {
  fs::remove(folder_ / kFile);
  EXPECT_TRUE(has(refused(), {kFile}));
  fs::remove(folder_ / kConfig);
  EXPECT_TRUE(has(refused(), {kConfig}));
}

}  // namespace
}  // namespace dsv32::suites
