#include "src/model/lora.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "src/model/weights.h"

namespace dsv32 {

namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kExperts = ".mlp.experts.";
constexpr std::array<std::string_view, 8> kLmLayers = {
    "q_a_proj",  "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj",
    "gate_proj", "up_proj",  "down_proj"};
constexpr std::array<std::string_view, 3> kKlLayers = {"wq_b", "wk", "weights_proj"};

template <typename Range>
bool contains(const Range& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// "model.layers.1.mlp.experts.5.up_proj" -> the fused module and this expert's rows in it.
LoraPlace fused_place(const ModelConfig& config, const std::string& path) {
  const size_t digits = path.find(kExperts) + kExperts.size();
  const size_t dot = path.find('.', digits);
  const std::string part = path.substr(dot + 1);
  const std::string fused = part == "down_proj" ? "down_proj" : "gate_up_proj";
  return {.module = path.substr(0, digits) + fused,
          .expert = std::stoll(path.substr(digits, dot - digits)),
          .first_row = part == "up_proj" ? config.moe_intermediate_size : 0};
}

bool wanted(const LoraTargets& targets, const LoraModule& module) {
  if (module.is_fused()) return targets.experts;
  return module.is_kl() ? targets.kl : targets.lm;
}

// Rows of one expert add up to the whole map; experts after the first only count.
void extend(LoraModule& module, const LoraPlace& place, const Shape& shape) {
  module.experts = std::max(module.experts, place.expert + 1);
  module.out = std::max(module.out, place.first_row + shape[0]);
}

}  // namespace

bool LoraModule::is_kl() const { return is_indexer(name); }

bool LoraModule::is_fused() const { return name.find(kExperts) != std::string::npos; }

std::optional<LoraPlace> lora_place(const ModelConfig& config, const std::string& weight_name) {
  if (!weight_name.ends_with(kWeight) || !weight_layer(weight_name)) return std::nullopt;
  const std::string path = weight_name.substr(0, weight_name.size() - kWeight.size());
  if (path.find(kExperts) != std::string::npos) return fused_place(config, path);
  const std::string_view leaf = std::string_view(path).substr(path.rfind('.') + 1);
  const bool adapted = is_indexer(path) ? contains(kKlLayers, leaf) : contains(kLmLayers, leaf);
  if (!adapted) return std::nullopt;
  return LoraPlace{.module = path};
}

std::optional<Shape> trained_shape(const ModelConfig& config, const std::string& name) {
  if (const auto shape = weight_shape(config, name)) return shape;
  for (const LoraModule& module : lora_modules(config, {.experts = true})) {
    if (name == module.a_name()) return module.a_shape();
    if (name == module.b_name()) return module.b_shape();
  }
  return std::nullopt;
}

std::vector<LoraModule> lora_modules(const ModelConfig& config, const LoraTargets& targets) {
  std::vector<LoraModule> modules;
  std::map<std::string, size_t> known;
  for (const WeightSpec& spec : weight_specs(config)) {
    const std::optional<LoraPlace> place = lora_place(config, spec.name);
    if (!place) continue;
    LoraModule module{
        .name = place->module, .in = spec.shape[1], .rank = targets.rank, .alpha = targets.alpha};
    if (!wanted(targets, module)) continue;
    const auto [at, fresh] = known.emplace(module.name, modules.size());
    if (fresh) modules.push_back(std::move(module));
    extend(modules[at->second], *place, spec.shape);
  }
  return modules;
}

}  // namespace dsv32
