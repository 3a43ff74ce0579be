// Names of checks: every name is read as it is written, and nothing else is a name.

#include "src/model/check_name.h"

#include <gtest/gtest.h>

#include <set>

#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/lora.h"
#include "src/model/trace.h"

namespace dsv32 {
namespace {

constexpr char kWeight[] = "model.layers.3.mlp.experts.5.gate_proj.weight";

/// `text` with the first `from` replaced, if it is there.
std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

/// The names that a line of the grammar stands for.
std::vector<std::string> examples(const std::string& line) {
  const std::string name =
      replaced(replaced(replaced(line, "step.N", "step.12"), "WEIGHT", kWeight), ".RANK", ".3");
  const size_t option = name.find('[');
  if (option == std::string::npos) return {name};
  return {name.substr(0, option), name.substr(0, option) + ".lm"};
}

void expect_round_trip(const std::string& name) {
  const std::optional<CheckName> parts = parse_check(name);
  ASSERT_TRUE(parts.has_value()) << name;
  EXPECT_EQ(to_string(*parts), name);
  EXPECT_EQ(parse_check(to_string(*parts)), parts) << name;
  EXPECT_EQ(name.find(' '), std::string::npos) << name;
}

TEST(SelfCheckName, EveryLineOfTheGrammarIsReadAsItIsWritten) {
  std::set<std::string> seen;
  for (const std::string& line : check_grammar()) {
    EXPECT_TRUE(seen.insert(line).second) << line << " is there twice";
    for (const std::string& name : examples(line)) expect_round_trip(name);
  }
}

TEST(SelfCheckName, EveryLineOfTheGrammarIsDocumented) {
  const std::string page = io::read_file("docs/report.md");
  for (const std::string& line : check_grammar())
    EXPECT_NE(page.find("`" + line + "`"), std::string::npos) << line;
}

TEST(SelfCheckName, EveryTapOfTheModelIsACheck) {
  for (const Case& c : io::cases()) {
    const Objective kl{.lm = true, .kl = KlStage::sparse};
    for (const auto& names :
         {forward_taps(c.config), kl_taps(c.config, kl), gradient_taps(c.config, kl)})
      for (const std::string& name : names) {
        expect_round_trip(name);
        EXPECT_EQ(parse_check(name)->scope, CheckScope::model) << name;
        EXPECT_EQ(check_layer(name), parse_tap(name)->layer) << name;
        EXPECT_EQ(is_gradient_check(name), parse_tap(name)->info.kind == TapKind::gradient);
      }
  }
}

TEST(SelfCheckName, AdaptersAreWeightsToo) {
  for (const LoraModule& module : lora_modules(io::find_case("tiny-wide").config))
    for (const std::string& weight : {module.a_name(), module.b_name()})
      expect_round_trip(steps_name("update", weight));
}

TEST(SelfCheckName, PartsSayWhatAndWhose) {
  const auto parts = [](const std::string& name) { return parse_check(name).value(); };
  EXPECT_EQ(parts("step.7.update." + std::string(kWeight)),
            (CheckName{CheckScope::step, 7, "update", kWeight}));
  EXPECT_EQ(parts("steps"), (CheckName{CheckScope::steps, {}, "", ""}));
  EXPECT_EQ(parts("curve.loss.falls"), (CheckName{CheckScope::curve, {}, "loss.falls", ""}));
  EXPECT_EQ(parts("curve.grad_norm.kl"), (CheckName{CheckScope::curve, {}, "grad_norm", "kl"}));
  EXPECT_EQ(parts("loss.lm"), (CheckName{CheckScope::model, {}, "loss.lm", ""}));
  EXPECT_EQ(parts("grad." + std::string(kWeight)),
            (CheckName{CheckScope::model, {}, "grad", kWeight}));
  EXPECT_EQ(parts("golden.file.sharded_accum3"),
            (CheckName{CheckScope::rule, {}, "golden.file", "sharded_accum3"}));
}

TEST(SelfCheckName, TheLayerIsTheTapsOrTheWeights) {
  EXPECT_EQ(check_layer("layers.2.ix.q"), 2);
  EXPECT_EQ(check_layer("end.param." + std::string(kWeight)), 3);
  EXPECT_EQ(check_layer("step.2.loss"), std::nullopt);
  EXPECT_EQ(check_layer("grad.lm_head.weight"), std::nullopt);
}

TEST(SelfCheckName, TapsOfATrainingFileAreNamedAsWhatTheyShow) {
  EXPECT_EQ(check_of_tap("train.grad_norm"), "curve.grad_norm");
  EXPECT_EQ(check_of_tap("param.lm_head.weight"), "end.param.lm_head.weight");
  EXPECT_EQ(check_of_tap("layers.0.topk"), "layers.0.topk");
  for (const TapInfo& info : tap_vocabulary())
    if (!info.per_layer) expect_round_trip(check_of_tap(std::string(info.name)));
}

TEST(SelfCheckName, NothingElseIsAName) {
  for (const char* name : {"",
                           "step",
                           "step.",
                           "step.7",
                           "step.7.",
                           "step.-1.loss",
                           "step.07.loss",
                           "step.7.loss.",
                           "step.7.loss.lm",
                           "step 7 loss",
                           "step.7.grad",
                           "step.7.grad.x",
                           "step.7.rank",
                           "step.7.rank.x",
                           "steps.",
                           "stepsloss",
                           "steps.loss.7",
                           "curve",
                           "curve.",
                           "curve.falls",
                           "curve.loss.rises",
                           "end.param",
                           "end.param.x",
                           "recipe.",
                           "recipe.x",
                           "golden file",
                           "golden.file.",
                           "golden.file.A",
                           "weights loaded",
                           "train.loss",
                           "param.lm_head.weight",
                           "grad.lm_head.weight ",
                           "layers.0.ix",
                           "layers.0.ix.q x"})
    EXPECT_EQ(parse_check(name), std::nullopt) << name;
  EXPECT_THROW(step_name(1, "loss", "lm"), Error);
  EXPECT_THROW(step_name(-1, "loss"), Error);
  EXPECT_THROW(end_name("param", "no weight"), Error);
  EXPECT_THROW(rule_name("loss falls"), Error);
}

}  // namespace
}  // namespace dsv32
