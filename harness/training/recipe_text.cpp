#include "harness/training/recipe_text.h"

#include <charconv>

namespace dsv32::harness {
namespace {

/// As ECMAScript prints it: fixed from 1e-6 on, no leading zero in an exponent.
std::string number(double value) {
  constexpr double kSmallestFixed = 1e-6;
  const bool fixed = value == 0 || value >= kSmallestFixed;
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, value,
                                 fixed ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string result(text, end);
  const size_t zero = result.find("e-0");
  if (zero != std::string::npos) result.erase(zero + 2, 1);
  return result;
}

std::string group_text(const training::Group& group) {
  const training::AdamW& a = group.adamw;
  return R"({"betas":[)" + number(a.beta1) + "," + number(a.beta2) + R"(],"eps":)" + number(a.eps) +
         R"(,"lr":)" + number(a.lr) + R"(,"name":")" + group.name + R"(","weight_decay":)" +
         number(a.weight_decay) + "}";
}

std::string kl_text(KlStage stage) {
  switch (stage) {
    case KlStage::none:
      return "none";
    case KlStage::warmup:
      return "warmup";
    case KlStage::sparse:
      return "sparse";
  }
  return "";
}

}  // namespace

std::string recipe_text(const training::Recipe& recipe, int64_t world) {
  std::string groups;
  for (const training::Group& group : recipe.groups)
    groups += (groups.empty() ? "" : ",") + group_text(group);
  const std::optional<double> clip = recipe.groups.front().clip;
  return R"({"accumulation":)" + std::to_string(recipe.micro_batches) + R"(,"batches":")" +
         (recipe.memorised ? "memorised" : "cycle4") + R"(","clip":)" +
         (clip ? number(*clip) : "null") + R"(,"groups":[)" + groups + R"(],"kl":")" +
         kl_text(recipe.objective.kl) + R"(","kl_weight":)" + number(recipe.objective.kl_weight) +
         R"(,"lm":)" + (recipe.objective.lm ? "true" : "false") + R"(,"steps":)" +
         std::to_string(recipe.steps) + R"(,"world":)" + std::to_string(world) + "}";
}

}  // namespace dsv32::harness
