#include "harness/training/step/recipe.h"

#include <charconv>

#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/weights.h"

namespace dsv32::harness {
namespace {

[[noreturn]] void refuse(const std::string& where, const std::string& expected,
                         const std::string& got) {
  throw Error(ExitCode::artefact,
              {.where = where, .what = "recipe", .expected = expected, .got = got});
}

std::string member(const io::Facts& facts, const std::string& key, const std::string& where) {
  for (const auto& [name, value] : facts)
    if (name == key) return value;
  refuse(where, "a member " + key, "none");
}

double number(const std::string& text, const std::string& where) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) refuse(where, "a number", text);
  return value;
}

KlStage stage(const std::string& text, const std::string& where) {
  if (text == "none") return KlStage::none;
  if (text == "warmup") return KlStage::warmup;
  if (text == "sparse") return KlStage::sparse;
  refuse(where, "kl none, warmup or sparse", text);
}

StepGroup group_of(const io::Facts& facts, const std::string& where) {
  StepGroup group{.name = member(facts, "name", where),
                  .lr = number(member(facts, "lr", where), where),
                  .eps = number(member(facts, "eps", where), where),
                  .weight_decay = number(member(facts, "weight_decay", where), where)};
  const std::string betas = member(facts, "betas", where);
  const size_t comma = betas.find(',');
  if (comma == std::string::npos) refuse(where, "two betas", betas);
  group.beta1 = number(betas.substr(1, comma - 1), where);
  group.beta2 = number(betas.substr(comma + 1, betas.size() - comma - 2), where);
  return group;
}

std::vector<StepGroup> groups_of(const std::string& list, const std::string& where) {
  std::vector<StepGroup> groups;
  for (size_t at = list.find('{'); at != std::string::npos; at = list.find('{', at + 1))
    groups.push_back(
        group_of(io::facts_of(list.substr(at, list.find('}', at) + 1 - at), where), where));
  const bool pair = groups.size() == 2 && groups[0].name == "lm" && groups[1].name == "kl";
  if (groups.size() != 1 && !pair) refuse(where, "one group, or lm and kl", list);
  return groups;
}

}  // namespace

const StepGroup& StepRecipe::group_of(const std::string& parameter) const {
  return groups.size() > 1 && is_indexer(parameter) ? groups[1] : groups[0];
}

StepRecipe read_step_recipe(const std::string& json, const std::string& where) {
  const io::Facts facts = io::facts_of(json, where);
  const auto text = [&](const char* key) { return member(facts, key, where); };
  StepRecipe recipe;
  recipe.micro_batches = static_cast<int64_t>(number(text("accumulation"), where));
  recipe.world = static_cast<int64_t>(number(text("world"), where));
  recipe.memorised = text("batches") == "memorised";
  recipe.objective = {.lm = text("lm") == "true",
                      .kl = stage(text("kl"), where),
                      .kl_weight = number(text("kl_weight"), where)};
  if (const std::string clip = text("clip"); !clip.empty() && clip != "null")
    recipe.clip = number(clip, where);
  recipe.groups = groups_of(text("groups"), where);
  if (recipe.micro_batches < 1 || recipe.world < 1) refuse(where, "counts from 1 on", json);
  return recipe;
}

}  // namespace dsv32::harness
