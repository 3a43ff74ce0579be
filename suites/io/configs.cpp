// config.json in both styles, the list of cases, cases of metadata.

#include <gtest/gtest.h>

#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

std::string tiny_text() { return io::read_file(io::home() / "configs/tiny/config.json"); }

/// The tiny config with one piece of text replaced.
std::string edited(const std::string& from, const std::string& to, std::string text = tiny_text()) {
  const size_t at = text.find(from);
  if (at == std::string::npos) throw std::invalid_argument("no " + from);
  return text.replace(at, from.size(), to);
}

ModelConfig parsed(const std::string& text) { return io::parse_config(text, "c.json"); }
std::string config_refusal(const std::string& text) {
  return refusal([&text] { parsed(text); });
}
ModelConfig with_rope(const std::string& rope) {
  return parsed(edited("\"rope_scaling\": null", rope));
}

constexpr const char* kYarn =
    R"("rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "mscale": 0.8, "mscale_all_dim": 1.2)";

TEST(SelfConfigs, ShippedOnesAreReadWithoutWarnings) {
  for (const std::string& name : io::config_names()) {
    const ModelConfig config = io::read_config(name);
    EXPECT_EQ(config.name, name);
    EXPECT_TRUE(config.warnings.empty()) << name << ": " << config.warnings.front();
  }
  EXPECT_EQ(io::read_config("full").yarn->factor, 40);
  EXPECT_EQ(io::read_config("full").num_hidden_layers, 61);
  EXPECT_EQ(io::read_config("small").index_topk, 256);
}

TEST(SelfConfigs, WrittenOneReadsBackTheSame) {
  for (const std::string& name : io::config_names()) {
    const std::string text = io::config_json(io::read_config(name));
    EXPECT_EQ(io::config_json(parsed(text)), text) << name;
    EXPECT_TRUE(parsed(text).warnings.empty());
  }
  const ModelConfig dense = io::find_case("tiny-dense").config;
  EXPECT_FALSE(parsed(io::config_json(dense)).use_sparse_attention);
}

TEST(SelfConfigs, NewStyleMeansTheSame) {
  const std::string moved =
      edited("\"rope_scaling\": null",
             R"("rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"})");
  const std::string listed =
      edited("\"first_k_dense_replace\": 1", R"("mlp_layer_types": ["dense", "sparse"])", moved);
  const std::string bare = edited("\"rope_theta\": 10000.0,\n  \"routed", "\"routed", listed);
  EXPECT_EQ(io::config_json(parsed(bare)), io::config_json(parsed(tiny_text())));
}

TEST(SelfConfigs, AttentionOfEveryLayerIsThatOfTheModel) {
  for (const std::string word : {"deepseek_sparse_attention", "indexed_attention"}) {
    const std::string list = "[\"" + word + "\", \"" + word + "\"]";
    const std::string named = edited("\"ep_size\": 1", "\"layer_types\": " + list);
    EXPECT_EQ(io::config_json(parsed(named)), io::config_json(parsed(tiny_text())));
  }
  const std::string full =
      edited("\"ep_size\": 1", R"("layer_types": ["indexed_attention", "full_attention"])");
  EXPECT_TRUE(has(config_refusal(full), {"layer_types", "in every layer"}));
}

TEST(SelfConfigs, YarnOfBothStylesMeansTheSame) {
  const ModelConfig old_style = with_rope(std::string(kYarn) + "}");
  ASSERT_TRUE(old_style.yarn);
  EXPECT_EQ(old_style.yarn->beta_fast, 32);
  EXPECT_EQ(old_style.yarn->mscale_all_dim, 1.2);
  const ModelConfig new_style = with_rope(
      R"("rope_parameters": {"rope_type": "yarn", "rope_theta": 10000, "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.8, "mscale_all_dim": 1.2, "truncate": true, "attention_factor": null})");
  EXPECT_EQ(io::config_json(old_style), io::config_json(new_style));
  EXPECT_EQ(
      with_rope(
          R"("rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16})")
          .yarn->mscale_all_dim,
      0);
}

TEST(SelfConfigs, RefusesWhatIsNotAConfig) {
  EXPECT_TRUE(has(config_refusal(""), {"c.json", "JSON"}));
  EXPECT_TRUE(has(config_refusal("{"), {"c.json", "JSON"}));
  EXPECT_TRUE(has(config_refusal("[]"), {"an object", "a list"}));
  EXPECT_TRUE(has(config_refusal("{}"), {"vocab_size", "a missing field"}));
  EXPECT_TRUE(has(config_refusal(std::string("{}\0", 3)), {"NUL"}));
  EXPECT_TRUE(has(config_refusal(edited("\"n_group\": 2", "\"n_group\": 2, \"n_group\": 2")),
                  {"duplicate key", "n_group"}));
  EXPECT_TRUE(has(config_refusal("{\"a\":" + std::string(100'000, '[')), {"depth"}));
}

TEST(SelfConfigs, RefusesEveryMissingSize) {
  for (const char* field : {"vocab_size", "hidden_size", "num_hidden_layers", "n_routed_experts",
                            "index_topk", "q_lora_rank", "first_k_dense_replace", "rms_norm_eps",
                            "rope_theta", "routed_scaling_factor"}) {
    const std::string text = config_refusal(edited("\"" + std::string(field) + "\"", "\"gone\""));
    EXPECT_TRUE(has(text, {"c.json", field, "a missing field"})) << text;
  }
}

struct Wrong {
  const char *from, *to;
  std::vector<std::string> says;
};

TEST(SelfConfigs, RefusesWrongTypesAndImpossibleValues) {
  const std::vector<Wrong> list = {
      {"\"vocab_size\": 100", "\"vocab_size\": \"100\"", {"vocab_size", "an integer", "\"100\""}},
      {"\"vocab_size\": 100", "\"vocab_size\": 100.0", {"vocab_size", "an integer"}},
      {"\"vocab_size\": 100", "\"vocab_size\": -100", {"vocab_size", "-100"}},
      {"\"vocab_size\": 100", "\"vocab_size\": 18446744073709551615", {"vocab_size", "an integer"}},
      {"\"vocab_size\": 100", "\"vocab_size\": null", {"vocab_size", "a missing field"}},
      {"\"norm_topk_prob\": true", "\"norm_topk_prob\": 1", {"norm_topk_prob", "true or false"}},
      {"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 1e999", {"JSON"}},
      {"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": NaN", {"JSON"}},
      {"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": -1e-06", {"rms_norm_eps"}},
      {"\"num_experts_per_tok\": 2",
       "\"num_experts_per_tok\": 5",
       {"num_experts_per_tok", "got 5"}},
      {"\"n_group\": 2", "\"n_group\": 3", {"n_group", "divisor", "got 3"}},
      {"\"topk_group\": 1", "\"topk_group\": 3", {"topk_group", "got 3"}},
      {"\"qk_rope_head_dim\": 16",
       "\"qk_rope_head_dim\": 15",
       {"qk_rope_head_dim", "even", "got 15"}},
      {"\"index_topk\": 8", "\"index_topk\": 0", {"index_topk", "got 0"}},
      {"\"qk_head_dim\": 32", "\"qk_head_dim\": 33", {"qk_head_dim", "32", "got 33"}},
      {"\"ep_size\": 1", "\"num_experts\": 5", {"num_experts", "expected 4", "got 5"}},
      {"\"num_hidden_layers\": 2",
       "\"num_hidden_layers\": 1000000000",
       {"n_routed_experts", "all layers together"}},
      {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", {"hidden_act", "silu", "gelu"}},
      {"\"tie_word_embeddings\": false",
       "\"tie_word_embeddings\": true",
       {"tie_word_embeddings", "false"}},
      {"\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2", {"moe_layer_freq"}}};
  for (const Wrong& wrong : list) {
    const std::string text = config_refusal(edited(wrong.from, wrong.to));
    EXPECT_TRUE(has(text, wrong.says)) << wrong.to << " -> " << text;
    EXPECT_TRUE(has(text, {"c.json"})) << text;
  }
}

TEST(SelfConfigs, RefusesContradictions) {
  const std::string types = edited("\"ep_size\": 1", R"("mlp_layer_types": ["sparse", "dense"])");
  EXPECT_TRUE(has(config_refusal(types), {"mlp_layer_types[1]", "before all sparse"}));
  const std::string count = edited("\"ep_size\": 1", R"("mlp_layer_types": ["sparse", "sparse"])");
  EXPECT_TRUE(has(config_refusal(count), {"first_k_dense_replace", "expected 0", "got 1"}));
  const std::string length = edited("\"ep_size\": 1", R"("mlp_layer_types": ["dense"])");
  EXPECT_TRUE(has(config_refusal(length), {"mlp_layer_types", "2 entries"}));
  const std::string theta =
      edited("\"rope_scaling\": null", R"("rope_parameters": {"rope_theta": 5.0})");
  EXPECT_TRUE(has(config_refusal(theta), {"rope_theta", "the same value"}));
}

TEST(SelfConfigs, RefusesRopeThatSpecOneDoesNotHave) {
  const auto rope_refusal = [](const std::string& more) {
    return config_refusal(edited("\"rope_scaling\": null", kYarn + more + "}"));
  };
  EXPECT_TRUE(has(rope_refusal(R"(, "truncate": false)"), {"rope_scaling.truncate", "true"}));
  EXPECT_TRUE(
      has(rope_refusal(R"(, "attention_factor": 1.1)"), {"rope_scaling.attention_factor", "1.1"}));
  EXPECT_TRUE(has(rope_refusal(R"(, "rope_type": "linear")"), {"rope_scaling.type"}));
  EXPECT_TRUE(has(config_refusal(edited("\"rope_scaling\": null",
                                        R"("rope_scaling": {"type": "linear", "factor": 2})")),
                  {"rope_scaling.type", "\"yarn\"", "\"linear\""}));
  EXPECT_TRUE(has(config_refusal(edited("\"rope_scaling\": null",
                                        R"("rope_scaling": {"type": "yarn", "factor": 2})")),
                  {"rope_scaling.original_max_position_embeddings", "a missing field"}));
}

TEST(SelfConfigs, WarnsOfUnknownFields) {
  const ModelConfig config = parsed(edited("\"ep_size\": 1", "\"brand_new\": 1"));
  ASSERT_EQ(config.warnings.size(), 1U);
  EXPECT_TRUE(has(config.warnings[0], {"brand_new"}));
  EXPECT_EQ(with_rope(std::string(kYarn) + R"(, "novel": 1})").warnings.size(), 1U);
  EXPECT_EQ(parsed(edited("\"deepseek_v32\"", "\"deepseek_v4\"")).warnings.size(), 1U);
}

TEST(SelfConfigs, SuggestsTheNearestName) {
  EXPECT_TRUE(has(refusal([] { io::read_config("tinny"); }, ExitCode::usage),
                  {"tinny", "did you mean tiny?"}));
  EXPECT_TRUE(
      has(refusal([] { io::read_config("no/such.json"); }), {"no/such.json", "No such file"}));
  EXPECT_TRUE(has(refusal([] { io::find_case("tiny-wyde"); }, ExitCode::usage),
                  {"did you mean tiny-wide?"}));
}

TEST(SelfCases, ListHasTheShapesOfTheFormatsPage) {
  const Case yarn = io::find_case("tiny-yarn");
  ASSERT_TRUE(yarn.config.yarn);
  EXPECT_EQ(yarn.config.yarn->beta_slow, 0.02);
  EXPECT_EQ(io::find_case("tiny-wide").config.n_routed_experts, 16);
  EXPECT_EQ(io::find_case("tiny-bias").bias_offset, -2);
  EXPECT_FALSE(io::find_case("tiny-nopad").mask_given);
  EXPECT_FALSE(io::find_case("tiny-dense").config.use_sparse_attention);
  EXPECT_EQ(io::find_case("tiny-chunk").chunks.size(), 11U);
  EXPECT_EQ(io::find_case("small").S, 544);
  for (const Case& c : io::cases()) {
    EXPECT_TRUE(!c.sparse || c.training || exercises_selection(c)) << c.name;
  }
}

std::string case_with(const std::string& extra) {
  return R"({"config":"tiny","overrides":{},"seed":1,"B":2,"S":32,"pad":5,"bias_offset":0,"chunks":[],)" +
         extra + "}";
}

TEST(SelfCases, OptionalKeysAreReadAndWrittenAgain) {
  const std::string edits =
      R"("edits":[{"column":3,"name":"lm_head.weight","scale":0.5},)"
      R"({"add":-2,"name":"model.layers.*.mlp.gate.e_score_correction_bias","row":1}])";
  const std::string rest = R"("pad_side":"right","position_offset":100,"config_style":5)";
  const Case c = io::case_from_metadata(case_with(edits + "," + rest));
  ASSERT_EQ(c.edits.size(), 2U);
  EXPECT_EQ(c.edits[0].column, 3);
  EXPECT_EQ(c.edits[1].add, -2);
  EXPECT_EQ(c.pad_side, PadSide::right);
  EXPECT_EQ(c.position_offset, 100);
  EXPECT_EQ(c.config_style, 5);
  EXPECT_TRUE(has(io::case_json(c), {edits, R"("pad_side":"right")"}));
  EXPECT_EQ(io::case_json(io::case_from_metadata(io::case_json(c))), io::case_json(c));
  const std::string usual = R"("edits":[],"pad_side":"left","position_offset":0,"config_style":4)";
  EXPECT_EQ(io::case_from_metadata(case_with(usual)).name, "tiny");
}

TEST(SelfCases, RefusesEditsAndKeysThatCannotBe) {
  const auto refused = [](const std::string& extra) {
    return refusal([&] { io::case_from_metadata(case_with(extra)); });
  };
  const auto edit = [&](const std::string& rest) {
    return refused(R"("edits":[{"name":"lm_head.weight",)" + rest + "}]");
  };
  EXPECT_TRUE(has(edit(R"("row":100)"), {"row of lm_head.weight", "0..99"}));
  EXPECT_TRUE(has(edit(R"("column":-1)"), {"column of lm_head.weight", "0..63"}));
  EXPECT_TRUE(has(edit(R"("row":1,"column":1)"), {"either a row or a column"}));
  EXPECT_TRUE(has(edit(R"("scale":2)"), {"either a row or a column"}));
  EXPECT_TRUE(has(edit(R"("row":1,"times":2)"), {"times"}));
  EXPECT_TRUE(has(refused(R"("edits":[{"name":"model.layers.*.nothing","row":0}])"),
                  {"a weight of this model"}));
  EXPECT_TRUE(has(refused(R"("pad_side":"top")"), {"left or right"}));
  EXPECT_TRUE(has(refused(R"("position_offset":-1)"), {"position_offset"}));
  EXPECT_TRUE(has(refused(R"("config_style":6)"), {"4 or 5"}));
  EXPECT_TRUE(has(refused(R"("later":1)"), {"known keys only"}));
  std::string text = case_with(R"("pad_side":"left")");
  text.replace(text.find(R"("bias_offset":0)"), 15, R"("bias_offset":1e300)");
  EXPECT_TRUE(has(refusal([&] { io::case_from_metadata(text); }), {"bias_offset", "2^20"}));
}

TEST(SelfCases, ThemselvesAsTransformers5WritesThem) {
  const Case c = io::find_case("tiny-theta");
  const Folder folder;
  io::make_checkpoint(c, folder / "ckpt", {.dtype = DType::float32});
  const std::string text = io::read_file(folder / "ckpt" / "config.json");
  EXPECT_TRUE(has(text, {"rope_parameters", "mlp_layer_types", "\"head_dim\": 48"})) << text;
  EXPECT_EQ(text.find("rope_scaling"), std::string::npos);
  const ModelConfig back = io::read_config((folder / "ckpt").string());
  EXPECT_EQ(back.rope_theta, 1e6);
  EXPECT_EQ(io::config_json(back), io::config_json(c.config));
}

TEST(SelfCases, OfAConfigHasTheSeedThatWasAsked) {
  const Case c = io::case_of_config(tiny_text(), 9);
  EXPECT_EQ(c.seed, 9U);
  EXPECT_EQ(c.S, 48);
  EXPECT_EQ(io::case_from_metadata(io::case_json(c)).seed, 9U);
  EXPECT_EQ(io::case_of_words("tiny").name, "tiny");
  EXPECT_EQ(io::case_of_words(case_with(R"("pad_side":"right")")).pad_side, PadSide::right);
}

TEST(SelfCases, OfAConfigLeaveTrainingOut) {
  const auto small = io::cases_of_config("small");
  ASSERT_EQ(small.size(), 1U);
  EXPECT_EQ(small[0].name, "small");
  for (const Case& c : io::cases_of_config("tiny")) EXPECT_FALSE(c.training) << c.name;
}

TEST(SelfCases, OfAPathAreOneDefaultCase) {
  const Folder folder;
  put(folder / "config.json", tiny_text());
  for (const fs::path& path : {folder / "config.json", folder.path()}) {
    const auto cases = io::cases_of_config(path.string());
    ASSERT_EQ(cases.size(), 1U);
    EXPECT_EQ(cases[0].S, 48);
    EXPECT_EQ(cases[0].B, 2);
    EXPECT_EQ(cases[0].pad, 5);
    EXPECT_TRUE(cases[0].sparse);
    const Case back = io::case_from_metadata(io::case_metadata(cases[0]));
    EXPECT_EQ(io::case_json(back), io::case_json(cases[0]));
  }
}

TEST(SelfCases, CanonicalTextIsSortedAndShort) {
  EXPECT_EQ(
      io::case_json(io::find_case("tiny")),
      R"({"B":2,"S":32,"bias_offset":0,"chunks":[],"config":"tiny","overrides":{},"pad":5,"seed":1})");
  EXPECT_EQ(
      io::find_case("tiny-yarn").overrides_json,
      R"({"rope_scaling":{"beta_fast":0.5,"beta_slow":0.02,"factor":4,"mscale":0.8,"mscale_all_dim":1.2,"original_max_position_embeddings":16,"type":"yarn"}})");
}

// ECMAScript's Number::toString at its edges, through a field that keeps doubles.
TEST(SelfCases, CanonicalNumbersAreThoseOfEcmascript) {
  const auto printed = [](const std::string& number) {
    const std::string text = R"({"config":"tiny","overrides":{"initializer_range":)" + number +
                             R"(},"seed":1,"B":1,"S":4,"pad":0,"bias_offset":0,"chunks":[]})";
    const std::string out = io::case_from_metadata(text).overrides_json;
    const size_t colon = out.find(':');
    return out.substr(colon + 1, out.size() - colon - 2);
  };
  EXPECT_EQ(printed("1.0"), "1");
  EXPECT_EQ(printed("-0.0"), "0");
  EXPECT_EQ(printed("0.1"), "0.1");
  EXPECT_EQ(printed("1e-6"), "0.000001");
  EXPECT_EQ(printed("1e-7"), "1e-7");
  EXPECT_EQ(printed("1.25e-7"), "1.25e-7");
  EXPECT_EQ(printed("1e20"), "100000000000000000000");
  EXPECT_EQ(printed("1e21"), "1e+21");
  EXPECT_EQ(printed("-1234.5"), "-1234.5");
  EXPECT_EQ(printed("9007199254740993"), "9007199254740993");
}

TEST(SelfCases, MetadataOfAListedCaseIsItsName) {
  for (const Case& c : io::cases()) {
    EXPECT_EQ(io::case_metadata(c), c.name);
    EXPECT_EQ(io::case_from_metadata(c.name).name, c.name);
    Case other = c;
    other.seed = UINT64_MAX;
    const Case back = io::case_from_metadata(io::case_metadata(other));
    EXPECT_EQ(back.seed, UINT64_MAX);
    EXPECT_EQ(io::case_json(back), io::case_json(other));
    EXPECT_TRUE(back.name.starts_with("case-")) << back.name;
  }
  EXPECT_EQ(io::case_from_metadata(io::case_json(io::find_case("tiny-dense"))).name, "tiny-dense");
}

TEST(SelfCases, MaskTellsTwinsApart) {
  Case c = io::find_case("tiny-nopad");
  std::string text = io::case_json(c);
  EXPECT_EQ(io::case_from_metadata(text).name, "tiny-nopad");
  text.insert(1, R"("mask":"given",)");
  const Case given = io::case_from_metadata(text);
  EXPECT_TRUE(given.mask_given);
  EXPECT_TRUE(given.name.starts_with("case-"));
}

TEST(SelfCases, KeepsTheDigestOfOwnData) {
  Case c = io::find_case("tiny");
  c.batch = std::string(64, 'a');
  EXPECT_EQ(io::case_from_metadata(io::case_metadata(c)).batch, c.batch);
  c.batch = "abc";
  EXPECT_TRUE(has(refusal([&c] { io::case_from_metadata(io::case_json(c)); }),
                  {"case.batch", "64 hex digits"}));
}

TEST(SelfCases, RefusesWrongMetadata) {
  const std::string good = io::case_json(io::find_case("tiny"));
  const std::vector<Wrong> list = {
      {"\"B\":2,", "", {"case.B", "a missing key"}},
      {"\"B\":2", "\"B\":2,\"x\":1", {"known keys only", "got x"}},
      {"\"B\":2", "\"B\":0", {"case.B", "got 0"}},
      {"\"S\":32", "\"S\":1000000", {"case.S", "tokens", "got 1000000"}},
      {"\"S\":32", "\"S\":\"32\"", {"case.S", "an integer"}},
      {"\"pad\":5", "\"pad\":32", {"case.pad", "less than S"}},
      {"\"seed\":1", "\"seed\":-1", {"case.seed", "got -1"}},
      {"\"chunks\":[]", "\"chunks\":[31]", {"case.chunks", "sum to S, 32", "got 31"}},
      {"\"chunks\":[]", "\"chunks\":[0,32]", {"case.chunks", "from 1 to S"}},
      {"\"config\":\"tiny\"", "\"config\":\"../tiny\"", {"case.config", "../tiny"}},
      {"\"config\":\"tiny\"", "\"config\":{}", {"vocab_size"}},
      {"\"overrides\":{}", "\"overrides\":{\"novel\":1}", {"case.overrides", "novel"}},
      {"\"overrides\":{}", "\"overrides\":{\"index_topk\":0}", {"index_topk"}}};
  for (const Wrong& wrong : list) {
    const std::string text =
        refusal([&] { io::case_from_metadata(edited(wrong.from, wrong.to, good)); });
    EXPECT_TRUE(has(text, wrong.says)) << wrong.to << " -> " << text;
  }
  EXPECT_TRUE(
      has(refusal([] { io::case_from_metadata("tiny-wyde"); }), {"did you mean tiny-wide?"}));
  EXPECT_TRUE(has(refusal([] { io::case_from_metadata(""); }), {"case"}));
}

}  // namespace
}  // namespace dsv32::suites
