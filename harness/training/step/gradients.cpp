#include "harness/training/step/gradients.h"

#include <charconv>

#include "harness/cases/implementations.h"
#include "harness/cases/threads.h"
#include "src/bridge/runtime.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/training/trainer.h"

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

int64_t counted_tokens(const Batch& batch) {
  int64_t count = 0;
  for (int64_t i = 0; i < batch.B * batch.S; ++i)
    count += i % batch.S > 0 && batch.labels[static_cast<size_t>(i)] >= 0 ? 1 : 0;
  return count;
}

}  // namespace

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
  const std::string groups = text("groups");
  if (groups.size() < 4 || groups.front() != '[') refuse(where, "groups, a list", groups);
  recipe.groups = static_cast<size_t>(std::count(groups.begin(), groups.end(), '{'));
  const io::Facts group = io::facts_of(groups.substr(1, groups.find('}')), where);
  recipe.lr = number(member(group, "lr", where), where);
  recipe.eps = number(member(group, "eps", where), where);
  recipe.weight_decay = number(member(group, "weight_decay", where), where);
  const std::string betas = member(group, "betas", where);
  const size_t comma = betas.find(',');
  if (comma == std::string::npos) refuse(where, "two betas", betas);
  recipe.beta1 = number(betas.substr(1, comma - 1), where);
  recipe.beta2 = number(betas.substr(comma + 1, betas.size() - comma - 2), where);
  if (recipe.micro_batches < 1 || recipe.world < 1) refuse(where, "counts from 1 on", json);
  return recipe;
}

std::vector<PartGradients> step_gradients(const Case& c, const StepRecipe& recipe,
                                          const Trace* decisions, int64_t step,
                                          const WeightSource& weights,
                                          const std::vector<std::string>& names) {
  constexpr int64_t kBatches = 4;  // docs/formats.md 2
  set_threads(threads_for(c));
  const auto model = make_model("reference", c.config, weights);
  const Batch batch = make_batch(c, recipe.memorised ? 0 : step % kBatches);
  std::vector<PartGradients> parts;
  for (int64_t rank = 0; rank < recipe.world; ++rank) {
    const auto [first, last] = training::share_of_rows(batch.B, rank, recipe.world);
    for (int64_t micro = 0; micro < recipe.micro_batches; ++micro) {
      const auto [begin, end] = training::share_of_rows(last - first, micro, recipe.micro_batches);
      const Batch rows = training::slice_rows(batch, first + begin, first + end);
      RunOptions options{.dtype = DType::float64, .objective = recipe.objective, .backward = true};
      const Trace replayed =
          decisions == nullptr ? Trace()
                               : training::slice_decisions(*decisions, first + begin, first + end);
      if (decisions != nullptr) {
        options.feeding = Feeding::forced;
        options.feed = &replayed;
      }
      const Trace run = model->run(rows, options);
      PartGradients part{.rank = rank, .micro = micro, .tokens = counted_tokens(rows)};
      for (const std::string& name : names)
        if (const HostTensor* gradient = run.find("grad." + name))
          part.gradients[name] = gradient->to_doubles();
      parts.push_back(std::move(part));
    }
  }
  return parts;
}

}  // namespace dsv32::harness
