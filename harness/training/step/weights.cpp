#include "harness/training/step/weights.h"

#include <algorithm>
#include <set>

#include "harness/training/lora_side.h"
#include "src/bridge/bridge.h"
#include "src/model/errors.h"
#include "src/training/trainer.h"

namespace dsv32::harness {
namespace {

using Names = std::vector<std::string>;

/// The model's own weights.
class WholeWeights : public StepWeights {
 public:
  WholeWeights(const Case& c, Names moved) : moved_(std::move(moved)) {
    const SyntheticWeights start(c);
    identity_ = start.identity();
    for (const WeightSpec& spec : weight_specs(c.config))
      values_[spec.name] = {spec.shape, start.load(spec).to_doubles()};
  }
  HostTensor load(const WeightSpec& spec) const override {
    const auto& [shape, values] = values_.at(spec.name);
    return HostTensor::from_doubles(DType::float64, shape, values);
  }
  std::string identity() const override { return identity_; }
  std::vector<double> at(const std::string& name) const override { return values_.at(name).second; }
  void add(const std::string& name, const HostTensor& update, DType stored) override {
    auto& [shape, values] = values_.at(name);
    for (size_t i = 0; i < values.size(); ++i) values[i] += update.at(static_cast<int64_t>(i));
    values = HostTensor::from_doubles(stored, shape, values).to_doubles();
  }
  Tensors gradients(const Trace& run) const override {
    Tensors all;
    for (const std::string& name : moved_)
      if (const HostTensor* gradient = run.find("grad." + name)) all[name] = gradient->to_doubles();
    return all;
  }
  Trace below(const Trace&) const override { return {}; }

 private:
  Names moved_;
  std::string identity_;
  std::map<std::string, std::pair<Shape, std::vector<double>>> values_;
};

/// Factors by their names.
class GivenFactors : public WeightSource {
 public:
  explicit GivenFactors(const Tensors& values) : values_(values) {}
  HostTensor load(const WeightSpec& spec) const override {
    return HostTensor::from_doubles(DType::float64, spec.shape, values_.at(spec.name));
  }
  std::string identity() const override { return "factors"; }

 private:
  const Tensors& values_;
};

Tensors doubles_of(const training::TensorTable& table) {
  Tensors all;
  for (const std::string& name : table.names())
    all[name] = to_host(table.at(name), DType::float64).to_doubles();
  return all;
}

std::vector<LoraModule> modules_of(const ModelConfig& config, const Names& factors) {
  const bool experts = std::any_of(factors.begin(), factors.end(), [](const std::string& name) {
    return name.find(".mlp.experts.") != std::string::npos;
  });
  return lora_modules(config, {.experts = experts});
}

/// The factors of adapters; the weights below them stay as they are.
class AdapterWeights : public StepWeights {
 public:
  AdapterWeights(const Case& c, const Names& moved)
      : config_(c.config),
        base_(std::make_unique<SyntheticWeights>(c)),
        start_(c.seed),
        adapters_(c.config, modules_of(c.config, moved), base_, start_, torch::kFloat64) {}
  HostTensor load(const WeightSpec& spec) const override { return adapters_.load(spec); }
  std::string identity() const override { return base_.identity(); }
  std::vector<double> at(const std::string& name) const override {
    return to_host(adapters_.table().at(name), DType::float64).to_doubles();
  }
  void add(const std::string& name, const HostTensor& update, DType stored) override {
    const torch::NoGradGuard no_grad;
    const torch::Tensor& value = adapters_.table().at(name);
    value.add_(to_torch(update).to(torch::kFloat64));
    value.copy_(to_torch(to_host(value, stored)));
  }
  Tensors gradients(const Trace& run) const override {
    return doubles_of(adapters_.gradients(run));
  }
  Trace below(const Trace& run) const override {
    Trace kept;
    for (const WeightSpec& spec : weight_specs(config_)) {
      const HostTensor* gradient = run.find("grad." + spec.name);
      if (gradient != nullptr && lora_place(config_, spec.name))
        kept.put("grad." + spec.name, *gradient);
    }
    return kept;
  }
  Names names() const { return adapters_.table().names(); }

 private:
  ModelConfig config_;
  ResidentWeights base_;
  training::ZeroB start_;
  training::LoraAdapters adapters_;
};

/// Rows [first, last) of a layer's outputs, in each half of a fused gate_up_proj.
std::vector<bool> own_rows(const LoraModule& m, const LayerShare& share) {
  const int64_t halves = m.name.ends_with("gate_up_proj") ? 2 : 1, rows = m.out / halves;
  const auto [first, last] = training::share_of_rows(rows, share.rank, share.world);
  std::vector<bool> own;
  for (int64_t row = 0; row < m.out; ++row) own.push_back(row % rows >= first && row % rows < last);
  return own;
}

/// Zero but in these rows or columns of a matrix.
std::vector<double> masked(std::vector<double> values, int64_t columns,
                           const std::function<bool(int64_t row, int64_t column)>& own) {
  for (size_t i = 0; i < values.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    if (!own(at / columns, at % columns)) values[i] = 0;
  }
  return values;
}

}  // namespace

bool is_factor(const std::string& name) {
  return name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
}

std::unique_ptr<StepWeights> step_weights(const Case& c, const Names& moved) {
  if (std::none_of(moved.begin(), moved.end(), is_factor))
    return std::make_unique<WholeWeights>(c, moved);
  auto adapters = std::make_unique<AdapterWeights>(c, moved);
  const Names names = adapters->names();
  if (std::set(names.begin(), names.end()) != std::set(moved.begin(), moved.end()))
    throw Error(ExitCode::artefact, {.where = c.name,
                                     .what = "adapters",
                                     .expected = std::to_string(names.size()) + " factors",
                                     .got = std::to_string(moved.size())});
  return adapters;
}

Tensors factor_gradients(const Case& c, const Trace& below, const Tensors& factors,
                         training::Bug bug) {
  Names names;
  for (const auto& [name, values] : factors) names.push_back(name);
  const SyntheticWeights base(c);
  const training::LoraAdapters adapters(c.config, modules_of(c.config, names), base,
                                        GivenFactors(factors), torch::kFloat64, bug);
  return doubles_of(adapters.gradients(below));
}

Tensors share_of_gradients(const Case& c, const Trace& below, const Tensors& factors,
                           const LayerShare& share) {
  Names names;
  for (const auto& [name, values] : factors) names.push_back(name);
  // dA = s B^T dW and dB = s dW A^T: a rank's own part of either is that of the rows of B, of the
  // columns of A, that it has.
  Tensors rows = factors, columns = factors;
  const std::vector<LoraModule> modules = modules_of(c.config, names);
  for (const LoraModule& m : modules) {
    const std::vector<bool> own = own_rows(m, share);
    const auto [first, last] = training::share_of_rows(m.in, share.rank, share.world);
    rows[m.b_name()] = masked(factors.at(m.b_name()), m.b_shape()[1],
                              [&](int64_t row, int64_t) { return own[static_cast<size_t>(row)]; });
    columns[m.a_name()] =
        masked(factors.at(m.a_name()), m.in, [first = first, last = last](int64_t, int64_t column) {
          return column >= first && column < last;
        });
  }
  Tensors of_a = factor_gradients(c, below, rows), of_b = factor_gradients(c, below, columns);
  for (const LoraModule& m : modules)
    if (of_b.contains(m.b_name())) of_a[m.b_name()] = std::move(of_b[m.b_name()]);
  return of_a;
}

}  // namespace dsv32::harness
