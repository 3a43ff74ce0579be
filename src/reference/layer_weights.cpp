#include "src/reference/layer_weights.h"

#include "src/model/errors.h"
#include "src/model/segment.h"
#include "src/reference/convert.h"

namespace dsv32::reference {

LayerWeights::LayerWeights(const WeightSource& source, std::vector<WeightSpec> specs,
                           std::string prefix, WeightStyle style)
    : source_(source), specs_(std::move(specs)), prefix_(std::move(prefix)), style_(style) {
  for (const WeightSpec& spec : specs_) by_name_[spec.name] = &spec;
}

namespace {

bool is_expert(const WeightSpec& spec) { return spec.name.find(".experts.") != std::string::npos; }

/// A matrix of an MLP or of a projection that is large at full size; products widen it part by
/// part.
bool is_large(const WeightSpec& spec) {
  for (const char* name : {"gate_proj.weight", "up_proj.weight", "down_proj.weight",
                           "q_b_proj.weight", "o_proj.weight", "wq_b.weight"})
    if (spec.name.ends_with(name)) return true;
  return false;
}

}  // namespace

/// `place` tells the signs of a part of a tensor from those of another part.
torch::Tensor LayerWeights::prepared(const HostTensor& stored, const WeightSpec& spec,
                                     const std::string& place) const {
  const bool moved = style_.perturbation > 0 && !is_buffer(spec.name);
  const bool narrow = style_.streamed && is_large(spec) && !moved && !style_.requires_grad;
  torch::Tensor value = to_torch(stored).to(style_.device);
  if (!narrow || value.scalar_type() != torch::kFloat32) value = value.to(style_.type);
  if (style_.fp8_as_bfloat16 && is_fp8_weight(spec.name))
    value = value.to(torch::kBFloat16).to(value.scalar_type());
  if (moved) {
    const auto move = style_.streamed ? perturbed_by_counter : perturbed;
    value = move(value, style_.perturbation, style_.perturbation_seed, place);
  }
  if (style_.requires_grad && !is_buffer(spec.name)) value.requires_grad_(true);
  return value;
}

const WeightSpec& LayerWeights::spec_of(const std::string& full_name) const {
  const auto spec = by_name_.find(full_name);
  if (spec != by_name_.end()) return *spec->second;
  throw Error(ExitCode::internal, {.where = "reference",
                                   .what = "weight",
                                   .expected = "a name of this layer",
                                   .got = full_name});
}

Weight LayerWeights::loaded(const WeightSpec& spec) const {
  const auto matrix = style_.fp8_codes ? source_.load_fp8(spec) : std::nullopt;
  if (!matrix) return prepared(source_.load(spec), spec, spec.name);
  Weight weight(prepared(dequantized(*matrix), spec, spec.name));
  const auto to_own = [&](const torch::Tensor& t) { return t.to(style_.device, style_.type); };
  weight.codes = to_own(to_torch(matrix->codes).view(torch::kFloat8_e4m3fn));
  weight.scales = to_own(to_torch(matrix->scales));
  weight.block_rows = matrix->block_rows;
  weight.block_columns = matrix->block_columns;
  return weight;
}

Weight LayerWeights::get(const std::string& name) {
  const std::string full = prefix_ + name;
  if (const auto kept = kept_.find(full); kept != kept_.end()) return kept->second;
  const WeightSpec& spec = spec_of(full);
  Weight weight = loaded(spec);
  const bool transient =
      !style_.requires_grad && (is_expert(spec) || (style_.streamed && is_large(spec)));
  if (!transient) kept_.emplace(full, weight);
  return weight;
}

torch::Tensor LayerWeights::get_rows(const std::string& name,
                                     const std::vector<int64_t>& ids) const {
  const WeightSpec& spec = spec_of(prefix_ + name);
  return prepared(gather_rows(source_, spec, ids), spec, spec.name + " rows");
}

torch::Tensor LayerWeights::get_range(const std::string& name, int64_t begin, int64_t end) const {
  const WeightSpec& spec = spec_of(prefix_ + name);
  return prepared(source_.load_rows(spec, begin, end), spec,
                  spec.name + " from " + std::to_string(begin));
}

torch::Tensor LayerWeights::gradient(const std::string& full_name) const {
  const auto kept = kept_.find(full_name);
  if (kept == kept_.end()) return {};
  return kept->second.value.grad();
}

}  // namespace dsv32::reference
