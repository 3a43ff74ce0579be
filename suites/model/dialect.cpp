// Dialects, the catalogue of known bugs, config rules and errors.

#include "src/model/dialect.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/trace.h"

namespace dsv32 {
namespace {

TEST(SelfDialect, DefaultsAreSpec1AndComeFirst) {
  EXPECT_EQ(dialect_presets().front(), Dialect{});
  EXPECT_EQ(dialect_presets().front().name, "spec-1");
}

TEST(SelfDialect, PresetsDifferFromEachOther) {
  const auto& presets = dialect_presets();
  for (size_t i = 0; i < presets.size(); ++i) {
    EXPECT_EQ(find_dialect(presets[i].name), presets[i]);
    EXPECT_FALSE(dialect_consequence(presets[i].name).empty());
    for (size_t j = 0; j < i; ++j) {
      Dialect renamed = presets[i];
      renamed.name = presets[j].name;
      EXPECT_NE(renamed, presets[j]) << presets[i].name;
    }
  }
}

TEST(SelfDialect, HfIsSpec1WithAnAmplitude) {
  Dialect hf = find_dialect("hf");
  EXPECT_TRUE(hf.rope.yarn_amplitude);
  hf.name = "spec-1";
  hf.rope.yarn_amplitude = false;
  EXPECT_EQ(hf, Dialect{});
}

TEST(SelfDialect, NamesAddUpFromLeftToRight) {
  const Dialect sum = find_dialect("spec-1+kl-sum-over-layers");
  EXPECT_EQ(sum.name, "spec-1+kl-sum-over-layers");
  EXPECT_TRUE(sum.kl.sum_over_layers);
  const Dialect more = find_dialect("hf+k-norm-eps+off-v32");
  EXPECT_TRUE(more.rope.yarn_amplitude);
  EXPECT_EQ(more.indexer.eps_k_norm, 1e-5);
  EXPECT_TRUE(more.attention.mscale_from_mscale);
  for (const KnownBug& bug : known_bugs()) {
    Dialect planted;
    bug.plant(planted);
    Dialect found = find_dialect(bug.name);
    found.name = planted.name;
    EXPECT_EQ(found, planted) << bug.name;
  }
  const std::string text = dialect_consequence("spec-1+hf+k-norm-eps");
  EXPECT_EQ(text.find("follows the specification"), std::string::npos) << text;
  EXPECT_NE(text.find("eps 1e-5"), std::string::npos) << text;
}

TEST(SelfDialect, AnUnknownPartIsRefused) {
  for (const char* name : {"hf+k-norm-esp", "hf+", "+hf", "", "hf k-norm-eps"})
    EXPECT_THROW(find_dialect(name), Error) << name;
  try {
    find_dialect("hf+k-norm-esp");
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean k-norm-eps?"), std::string::npos);
  }
}

TEST(SelfDialect, UnknownNameSuggestsTheNearest) {
  try {
    find_dialect("fork-mian");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("did you mean fork-main?"), std::string::npos);
  }
}

// The forward or gradient tap of layer 1 (the expert layer of the tiny cases) or of the whole
// model.
std::string full_name(const std::string& stem) {
  const std::string gradient = "grad.";
  if (stem.starts_with(gradient)) return "grad.model.layers.1." + stem.substr(gradient.size());
  return parse_tap(stem) ? stem : layer_tap(1, stem);
}

TEST(SelfKnownBugs, EveryRowIsOneChangeOneTapOneCase) {
  for (const KnownBug& bug : known_bugs()) {
    SCOPED_TRACE(bug.name);
    Dialect planted;
    bug.plant(planted);
    EXPECT_NE(planted, Dialect{});
    EXPECT_FALSE(bug.description.empty());
    const Case& c = io::find_case(bug.case_name);
    const std::optional<TapName> tap = parse_tap(full_name(bug.first_tap));
    ASSERT_TRUE(tap);
    EXPECT_EQ(tap_stem(tap->full), bug.first_tap);
    EXPECT_TRUE(tap_shape(*tap, c.config, c.B, c.S));
  }
}

TEST(SelfKnownBugs, NoTwoRowsAreTheSame) {
  std::set<std::string> names;
  std::vector<Dialect> seen;
  for (const KnownBug& bug : known_bugs()) {
    EXPECT_TRUE(names.insert(bug.name).second) << bug.name;
    Dialect planted;
    bug.plant(planted);
    for (const Dialect& other : seen) EXPECT_NE(planted, other) << bug.name;
    seen.push_back(planted);
  }
}

TEST(SelfKnownBugs, CasesHaveWhatTheirBugNeeds) {
  for (const KnownBug& bug : known_bugs()) {
    const Case& c = io::find_case(bug.case_name);
    Dialect planted;
    bug.plant(planted);
    const bool needs_mscale =
        planted.attention.mscale_power != 2 || planted.attention.mscale_from_mscale;
    if (needs_mscale || planted.rope.yarn_ignored) {
      EXPECT_TRUE(c.config.yarn.has_value()) << bug.name;
    }
    if (planted.rope.positions_of_row0) {
      EXPECT_GT(c.pad, 0) << bug.name;
    }
    if (planted.rope.angles_along_heads) {
      EXPECT_EQ(c.S, c.config.index_n_heads) << bug.name;
    }
    if (planted.router.group_fill_zero) {
      EXPECT_LT(c.bias_offset, 0) << bug.name;
    }
    EXPECT_LT(planted.moe.dropped_gradient_expert, c.config.n_routed_experts) << bug.name;
    EXPECT_EQ(planted.kl == KlVariant{}, bug.objective.kl == KlStage::none) << bug.name;
    if (planted.kl.mean_over_all) {
      EXPECT_GT(c.pad, 0) << bug.name;
    }
  }
}

TEST(SelfConfig, ShippedConfigsAndCasesAreValid) {
  for (const std::string& name : io::config_names()) {
    EXPECT_NO_THROW(io::read_config(name).validate()) << name;
  }
  for (const Case& c : io::cases()) EXPECT_NO_THROW(c.config.validate()) << c.name;
}

struct ConfigRow {
  std::string field;  // as the error names it
  std::function<void(ModelConfig&)> spoil;
};

const std::vector<ConfigRow> kBadConfigs = {
    {"vocab_size", [](ModelConfig& c) { c.vocab_size = 0; }},
    {"hidden_size", [](ModelConfig& c) { c.hidden_size = -1; }},
    {"intermediate_size", [](ModelConfig& c) { c.intermediate_size = 0; }},
    {"moe_intermediate_size", [](ModelConfig& c) { c.moe_intermediate_size = int64_t{1} << 40; }},
    {"num_hidden_layers", [](ModelConfig& c) { c.num_hidden_layers = 0; }},
    {"max_position_embeddings", [](ModelConfig& c) { c.max_position_embeddings = 0; }},
    {"first_k_dense_replace", [](ModelConfig& c) { c.first_k_dense_replace = 3; }},
    {"rms_norm_eps", [](ModelConfig& c) { c.rms_norm_eps = 0; }},
    {"num_attention_heads", [](ModelConfig& c) { c.num_attention_heads = 0; }},
    {"num_key_value_heads", [](ModelConfig& c) { c.num_key_value_heads = 1; }},
    {"q_lora_rank", [](ModelConfig& c) { c.q_lora_rank = 0; }},
    {"kv_lora_rank", [](ModelConfig& c) { c.kv_lora_rank = 0; }},
    {"qk_nope_head_dim", [](ModelConfig& c) { c.qk_nope_head_dim = 0; }},
    {"qk_rope_head_dim", [](ModelConfig& c) { c.qk_rope_head_dim = 15; }},
    {"v_head_dim", [](ModelConfig& c) { c.v_head_dim = 0; }},
    {"index_n_heads", [](ModelConfig& c) { c.index_n_heads = 0; }},
    {"index_head_dim", [](ModelConfig& c) { c.index_head_dim = 8; }},
    {"index_topk", [](ModelConfig& c) { c.index_topk = 0; }},
    {"n_routed_experts", [](ModelConfig& c) { c.n_routed_experts = 0; }},
    {"n_shared_experts", [](ModelConfig& c) { c.n_shared_experts = 0; }},
    {"num_experts_per_tok", [](ModelConfig& c) { c.num_experts_per_tok = 17; }},
    {"num_experts_per_tok", [](ModelConfig& c) { c.num_experts_per_tok = 9; }},  // 2 groups of 4
    {"n_group", [](ModelConfig& c) { c.n_group = 3; }},
    {"n_group", [](ModelConfig& c) { c.n_group = 16; }},
    {"topk_group", [](ModelConfig& c) { c.topk_group = 5; }},
    {"routed_scaling_factor", [](ModelConfig& c) { c.routed_scaling_factor = NAN; }},
    {"rope_theta", [](ModelConfig& c) { c.rope_theta = 1; }},
    {"rope_scaling.factor", [](ModelConfig& c) { c.yarn = YarnConfig{.factor = 0}; }},
    {"rope_scaling.original_max_position_embeddings",
     [](ModelConfig& c) { c.yarn = YarnConfig{.factor = 4}; }},
    {"rope_scaling.beta_slow",
     [](ModelConfig& c) {
       c.yarn = YarnConfig{.original_max_position_embeddings = 16, .beta_slow = 0};
     }},
    {"rope_scaling.beta_fast",
     [](ModelConfig& c) {
       c.yarn = YarnConfig{.original_max_position_embeddings = 16, .beta_fast = 1, .beta_slow = 2};
     }},
    {"rope_scaling.mscale_all_dim",
     [](ModelConfig& c) {
       c.yarn = YarnConfig{.original_max_position_embeddings = 16, .mscale_all_dim = -1};
     }},
};

TEST(SelfConfig, ImpossibleValuesNameTheirField) {
  for (const ConfigRow& row : kBadConfigs) {
    SCOPED_TRACE(row.field);
    ModelConfig config = io::find_case("tiny-wide").config;
    config.name = "my.json";
    row.spoil(config);
    try {
      config.validate();
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::artefact);
      EXPECT_EQ(error.complaint().where, "my.json");
      EXPECT_EQ(error.complaint().what, row.field) << error.what();
      EXPECT_FALSE(error.complaint().expected.empty());
    }
  }
}

TEST(SelfErrors, FormatLeavesEmptyPartsOut) {
  EXPECT_EQ(to_string(Complaint{.where = "a.json",
                                .what = "n_group",
                                .expected = "4",
                                .got = "3",
                                .context = "tiny",
                                .hint = "see docs/spec.md"}),
            "a.json: n_group: expected 4, got 3 (tiny); hint: see docs/spec.md");
  EXPECT_EQ(to_string(Complaint{.where = "f", .what = "gone", .expected = "", .got = ""}),
            "f: gone");
  EXPECT_EQ(to_string(Complaint{.where = "f", .what = "size", .expected = "", .got = "3"}),
            "f: size: got 3");
  EXPECT_EQ(to_string(Complaint{.where = "f", .what = "", .expected = "", .got = "", .hint = "h"}),
            "f; hint: h");
}

TEST(SelfErrors, WorstCodeWins) {
  using enum ExitCode;
  const std::vector<ExitCode> rising = {ok, nothing, parity, environment, artefact, internal};
  for (size_t i = 0; i < rising.size(); ++i) {
    for (size_t j = 0; j < rising.size(); ++j) {
      EXPECT_EQ(worst(rising[i], rising[j]), rising[std::max(i, j)]);
    }
  }
}

TEST(SelfErrors, NearestToleratesTypingErrorsOnly) {
  const std::vector<std::string> known = {"forward", "backward", "tiny", "small"};
  EXPECT_EQ(nearest("foward", known), "forward");
  EXPECT_EQ(nearest("bakcward", known), "backward");
  EXPECT_EQ(nearest("tinny", known), "tiny");
  EXPECT_EQ(nearest("sharded", known), "");
  EXPECT_EQ(nearest("", known), "");
  EXPECT_EQ(nearest("x", {}), "");
  EXPECT_EQ(nearest("xyz", {"ab"}), "");
}

}  // namespace
}  // namespace dsv32
