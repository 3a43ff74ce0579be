#include "src/reference/layer_weights.h"

#include "src/model/errors.h"
#include "src/reference/convert.h"

namespace dsv32::reference {

LayerWeights::LayerWeights(const WeightSource& source, std::vector<WeightSpec> specs,
                           std::string prefix, WeightStyle style)
    : source_(source), specs_(std::move(specs)), prefix_(std::move(prefix)), style_(style) {
  for (const WeightSpec& spec : specs_) by_name_[spec.name] = &spec;
}

torch::Tensor LayerWeights::load(const WeightSpec& spec) const {
  torch::Tensor value = to_torch(source_.load(spec)).to(style_.device, style_.type);
  if (style_.perturbation > 0 && !is_buffer(spec.name)) {
    value = perturbed(value, style_.perturbation, style_.perturbation_seed, spec.name);
  }
  if (style_.requires_grad && !is_buffer(spec.name)) value.requires_grad_(true);
  return value;
}

torch::Tensor LayerWeights::get(const std::string& name) {
  const std::string full = prefix_ + name;
  if (const auto kept = kept_.find(full); kept != kept_.end()) return kept->second;
  const auto spec = by_name_.find(full);
  if (spec == by_name_.end()) {
    throw Error(
        ExitCode::internal,
        {.where = "reference", .what = "weight", .expected = "a name of this layer", .got = full});
  }
  torch::Tensor value = load(*spec->second);
  const bool transient = !style_.requires_grad && full.find(".experts.") != std::string::npos;
  if (!transient) kept_[full] = value;
  return value;
}

torch::Tensor LayerWeights::gradient(const std::string& full_name) const {
  const auto kept = kept_.find(full_name);
  if (kept == kept_.end()) return {};
  return kept->second.grad();
}

}  // namespace dsv32::reference
