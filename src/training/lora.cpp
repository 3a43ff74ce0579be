#include "src/training/lora.h"

#include "src/bridge/bridge.h"
#include "src/model/errors.h"

namespace dsv32::training {
namespace {

/// Expert e of A: rows [e rank, (e + 1) rank).
Tensor expert_of_a(const Tensor& a, const LoraModule& m, int64_t expert) {
  return a.view({m.experts, m.rank, m.in}).select(0, expert);
}

/// Expert e of B: every experts-th column from e on.
Tensor expert_of_b(const Tensor& b, const LoraModule& m, int64_t expert, Bug bug) {
  if (bug == Bug::lora_expert_columns) return b.view({m.out, m.experts, m.rank}).select(1, expert);
  return b.view({m.out, m.rank, m.experts}).select(2, expert);
}

/// Bug::lora_wrong_projection: gate's adapter on up, and up's on gate.
std::string swapped_projection(const std::string& name) {
  for (const auto& [from, to] : {std::pair("gate_proj", "up_proj"), {"up_proj", "gate_proj"}}) {
    if (!name.ends_with(std::string(".") + from)) continue;
    return name.substr(0, name.size() - std::string(from).size()) + to;
  }
  return name;
}

}  // namespace

LoraAdapters::LoraAdapters(const ModelConfig& config, std::vector<LoraModule> modules,
                           const WeightSource& base, const WeightSource& start,
                           torch::ScalarType master, Bug bug)
    : modules_(std::move(modules)), base_(base), master_(master), bug_(bug) {
  place_weights(config);
  for (const LoraModule& m : modules_) {
    table_.put(m.a_name(), to_torch(start.load({m.a_name(), m.a_shape()})).to(master).clone());
    table_.put(m.b_name(), to_torch(start.load({m.b_name(), m.b_shape()})).to(master).clone());
  }
}

void LoraAdapters::place_weights(const ModelConfig& config) {
  std::map<std::string, size_t> known;
  for (size_t i = 0; i < modules_.size(); ++i) known[modules_[i].name] = i;
  for (const WeightSpec& spec : weight_specs(config)) {
    const std::optional<LoraPlace> place = lora_place(config, spec.name);
    if (!place) continue;
    const bool wrong = bug_ == Bug::lora_wrong_projection;
    const auto module = known.find(wrong ? swapped_projection(place->module) : place->module);
    if (module == known.end()) continue;
    if (bug_ == Bug::lora_target_ignored && spec.name.find("indexer.wq_b") != std::string::npos)
      continue;
    const LoraModule& m = modules_[module->second];
    const bool exchanged = bug_ == Bug::lora_expert_halves && m.experts > 1;
    const int64_t first = exchanged ? m.out - spec.shape[0] - place->first_row : place->first_row;
    by_name_[spec.name] = places_.size();
    places_.push_back({spec, module->second, place->expert, first});
  }
}

double LoraAdapters::scale(const Place& place) const {
  const LoraModule& m = modules_[place.module];
  return bug_ == Bug::lora_scale_alpha ? m.alpha : m.scale();
}

Tensor LoraAdapters::a_of(const Place& place) const {
  const LoraModule& m = modules_[place.module];
  return expert_of_a(table_.at(m.a_name()), m, place.expert);
}

Tensor LoraAdapters::b_of(const Place& place) const {
  const LoraModule& m = modules_[place.module];
  const Tensor whole = expert_of_b(table_.at(m.b_name()), m, place.expert, bug_);
  return whole.narrow(0, place.first_row, place.weight.shape[0]);
}

bool LoraAdapters::transposed(const Place& place) const {
  const Shape& shape = place.weight.shape;
  return bug_ == Bug::lora_transposed && shape[0] == shape[1];
}

Tensor LoraAdapters::delta(const Place& place) const {
  const Tensor product = torch::matmul(b_of(place), a_of(place)) * scale(place);
  return transposed(place) ? product.t() : product;
}

HostTensor LoraAdapters::load(const WeightSpec& spec) const {
  const auto found = by_name_.find(spec.name);
  if (found == by_name_.end()) return base_.load(spec);
  if (bug_ == Bug::lora_kv_b_ignored && spec.name.find("kv_b_proj") != std::string::npos)
    return base_.load(spec);
  if (const auto merged = merged_.find(spec.name); merged != merged_.end()) return merged->second;
  torch::NoGradGuard no_grad;
  const Tensor weight = to_torch(base_.load(spec)).to(master_);
  return to_host(weight + delta(places_[found->second]), dtype_of(master_));
}

TensorTable LoraAdapters::gradients(const Trace& run) const {
  torch::NoGradGuard no_grad;
  TensorTable sums;
  for (const Place& place : places_) {
    const HostTensor* gradient = run.find("grad." + place.weight.name);
    if (gradient != nullptr) add_gradient(place, to_torch(*gradient).to(master_), sums);
  }
  TensorTable ordered;
  for (const std::string& name : table_.names())
    if (sums.has(name)) ordered.put(name, sums.at(name));
  return ordered;
}

void LoraAdapters::add_gradient(const Place& place, Tensor weight_gradient,
                                TensorTable& gradients) const {
  const LoraModule& m = modules_[place.module];
  if (!gradients.has(m.a_name())) {
    gradients.put(m.a_name(), torch::zeros_like(table_.at(m.a_name())));
    gradients.put(m.b_name(), torch::zeros_like(table_.at(m.b_name())));
  }
  if (transposed(place)) weight_gradient = weight_gradient.t();
  const Tensor of_a = torch::matmul(b_of(place).t(), weight_gradient) * scale(place);
  const Tensor of_b = torch::matmul(weight_gradient, a_of(place).t()) * scale(place);
  expert_of_a(gradients.at(m.a_name()), m, place.expert).add_(of_a);
  expert_of_b(gradients.at(m.b_name()), m, place.expert, bug_)
      .narrow(0, place.first_row, place.weight.shape[0])
      .add_(of_b);
}

void LoraAdapters::merge() {
  if (!merged_.empty()) {
    throw Error(ExitCode::internal, {.where = "LoRA",
                                     .what = "merge",
                                     .expected = "adapters that are not merged",
                                     .got = "merged ones"});
  }
  torch::NoGradGuard no_grad;
  std::map<std::string, HostTensor> merged;
  for (const Place& place : places_) {
    HostTensor weight = load(place.weight);
    if (bug_ == Bug::lora_merge_twice)
      weight = to_host(to_torch(weight) + delta(place), dtype_of(master_));
    merged[place.weight.name] = weight;
  }
  merged_ = std::move(merged);
}

void LoraAdapters::unmerge() {
  if (bug_ != Bug::lora_unmerge_subtracts) return merged_.clear();
  torch::NoGradGuard no_grad;
  for (auto& [name, weight] : merged_) {  // the bug: what is read from now on is not the base
    const Place& place = places_[by_name_.at(name)];
    weight = to_host(to_torch(weight) - delta(place), dtype_of(master_));
  }
}

std::string LoraAdapters::identity() const { return base_.identity() + "+lora"; }

HostTensor ZeroB::load(const WeightSpec& spec) const {
  const bool is_b = spec.name.ends_with(".lora_B.weight");
  return is_b ? HostTensor(DType::float32, spec.shape) : synthetic_.load(spec);
}

}  // namespace dsv32::training
