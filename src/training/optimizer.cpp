#include "src/training/optimizer.h"

#include <torch/optim.h>

#include <cmath>
#include <set>

#include "src/model/errors.h"
#include "src/model/tensor.h"

namespace dsv32::training {
namespace {

constexpr const char* kStep = "/step";
constexpr const char* kFirst = "/exp_avg";
constexpr const char* kSecond = "/exp_avg_sq";

using AdamWMoments = torch::optim::AdamWParamState;
using AdamWOptions = torch::optim::AdamWOptions;

AdamWOptions options_of(const AdamW& a) {
  return AdamWOptions(a.lr).betas({a.beta1, a.beta2}).eps(a.eps).weight_decay(a.weight_decay);
}

AdamW with_bug(AdamW adamw, Bug bug) {
  if (bug == Bug::lr_1_05) adamw.lr *= 1.05;
  if (bug == Bug::betas_swapped) std::swap(adamw.beta1, adamw.beta2);
  return adamw;
}

/// One group: its parameters, and torch's optimizer for them, which also keeps the moments that
/// kernels work on.
class GroupOptimizer {
 public:
  GroupOptimizer(const Group& group, const TensorTable& parameters, Bug bug,
                 const AdamWKernels& kernels)
      : name_(group.name),
        adamw_(with_bug(group.adamw, bug)),
        clip_(group.clip),
        bug_(bug),
        kernels_(kernels),
        names_(parameters_of(group, parameters)) {
    for (const std::string& name : names_) tensors_.push_back(parameters.at(name));
    optimizer_ = std::make_unique<torch::optim::AdamW>(tensors_, options_of(adamw_));
  }

  const std::vector<std::string>& names() const { return names_; }

  double step(const TensorTable& parameters, const TensorTable& gradients) {
    check_identity(parameters);
    std::vector<std::string> with_gradient;
    for (const std::string& name : names_)
      if (gradients.has(name)) with_gradient.push_back(name);
    if (kernels_.update) return fused_step(gradients);
    const Tensor norm = global_norm(with_gradient, gradients);
    const Tensor factor = clip_factor(norm);
    for (size_t i = 0; i < names_.size(); ++i) {
      if (gradients.has(names_[i])) set_gradient(i, gradients.at(names_[i]), factor);
    }
    if (bug_ == Bug::one_never_updated && !with_gradient.empty())
      drop_gradient(neglected(with_gradient));
    run_step();
    for (Tensor& tensor : tensors_) tensor.mutable_grad() = Tensor();
    ++steps_;
    return norm.item<double>();
  }

  void write(OptimizerState& state) const {
    state.put(name_ + kStep, torch::tensor(steps_, torch::kInt64));
    for (size_t i = 0; i < names_.size(); ++i) {
      const AdamWMoments* moments = moments_of(tensors_[i]);
      if (moments == nullptr) continue;
      state.put(name_ + "/" + names_[i] + kFirst, moments->exp_avg());
      state.put(name_ + "/" + names_[i] + kSecond, moments->exp_avg_sq());
    }
  }

  /// Takes its entries out of `unknown`.
  void read(const OptimizerState& state, std::set<std::string>& unknown) {
    steps_ = steps_in(state, unknown);
    for (size_t i = 0; i < names_.size(); ++i) {
      const std::string key = name_ + "/" + names_[i];
      const bool first = unknown.erase(key + kFirst) != 0;
      const bool second = unknown.erase(key + kSecond) != 0;
      if (first != second) refuse(key, "both moments", "one of them");
      optimizer_->state().erase(tensors_[i].unsafeGetTensorImpl());
      if (first) set_moments(tensors_[i], key, state);
    }
  }

 private:
  [[noreturn]] static void refuse(const std::string& what, const std::string& expected,
                                  const std::string& got) {
    throw Error(ExitCode::artefact,
                {.where = "optimizer state", .what = what, .expected = expected, .got = got});
  }

  void check_identity(const TensorTable& parameters) const {
    for (size_t i = 0; i < names_.size(); ++i) {
      if (parameters.at(names_[i]).is_same(tensors_[i])) continue;
      throw Error(ExitCode::internal, {.where = "optimizer",
                                       .what = names_[i],
                                       .expected = "the tensor it was made with",
                                       .got = "another one"});
    }
  }

  double fused_step(const TensorTable& gradients) {
    ++steps_;
    AdamWTensors tensors;
    for (size_t i = 0; i < names_.size(); ++i) {
      if (!gradients.has(names_[i])) continue;
      const AdamWMoments& moments = moments_at_step(tensors_[i]);
      tensors.parameters.push_back(tensors_[i]);
      tensors.gradients.push_back(gradients.at(names_[i]));
      tensors.exp_avg.push_back(moments.exp_avg());
      tensors.exp_avg_sq.push_back(moments.exp_avg_sq());
    }
    if (tensors.parameters.empty()) return 0;
    const Tensor norm = kernels_.grad_norm(tensors.gradients);
    const Tensor factor = clip_factor(norm);
    const Tensor scale = factor.defined() ? factor.to(torch::kFloat32) : torch::ones({});
    kernels_.update(tensors, scale, steps_, adamw_);
    return norm.item<double>();
  }

  /// Zeros at the first one.
  const AdamWMoments& moments_at_step(const Tensor& tensor) {
    auto& state = optimizer_->state()[tensor.unsafeGetTensorImpl()];
    if (state == nullptr) {
      auto fresh = std::make_unique<AdamWMoments>();
      fresh->exp_avg(torch::zeros_like(tensor));
      fresh->exp_avg_sq(torch::zeros_like(tensor));
      state = std::move(fresh);
    }
    auto& moments = static_cast<AdamWMoments&>(*state);
    moments.step(steps_);
    return moments;
  }

  static Tensor global_norm(const std::vector<std::string>& names, const TensorTable& gradients) {
    std::vector<Tensor> norms;
    for (const std::string& name : names)
      norms.push_back(torch::linalg_vector_norm(gradients.at(name)));
    if (norms.empty()) return torch::zeros({});
    return torch::linalg_vector_norm(torch::stack(norms));
  }

  /// As torch.nn.utils.clip_grad_norm_: the small number in the denominator included.
  Tensor clip_factor(const Tensor& norm) const {
    constexpr double kNormEps = 1e-6;
    if (!clip_ || bug_ == Bug::clip_after_step) return Tensor();
    return torch::clamp_max(*clip_ / (norm + kNormEps), 1.0);
  }

  void set_gradient(size_t i, const Tensor& gradient, const Tensor& factor) {
    tensors_[i].mutable_grad() = factor.defined() ? gradient * factor : gradient;
  }

  void drop_gradient(const std::string& name) {
    for (size_t i = 0; i < names_.size(); ++i)
      if (names_[i] == name) tensors_[i].mutable_grad() = Tensor();
  }

  void run_step() {
    if (bug_ == Bug::l2_decay) add_l2_decay();
    if (bug_ == Bug::no_bias_correction) cancel_bias_correction();
    optimizer_->step();
  }

  void add_l2_decay() {
    for (Tensor& tensor : tensors_)
      if (tensor.grad().defined())
        tensor.mutable_grad() = tensor.grad() + adamw_.weight_decay * tensor;
    options().weight_decay(0);
  }

  /// torch computes lr / c1 * m / (sqrt(v) / sqrt(c2) + eps): chosen so that c1 and c2 drop out.
  void cancel_bias_correction() {
    const double count = static_cast<double>(steps_ + 1);
    const double c1 = 1 - std::pow(adamw_.beta1, count);
    const double root = std::sqrt(1 - std::pow(adamw_.beta2, count));
    options().lr(adamw_.lr * c1 / root);
    options().eps(adamw_.eps / root);
    options().weight_decay(adamw_.weight_decay * root / c1);
  }

  AdamWOptions& options() {
    return static_cast<AdamWOptions&>(optimizer_->param_groups()[0].options());
  }

  const AdamWMoments* moments_of(const Tensor& tensor) const {
    const auto found = optimizer_->state().find(tensor.unsafeGetTensorImpl());
    return found == optimizer_->state().end() ? nullptr
                                              : static_cast<AdamWMoments*>(found->second.get());
  }

  int64_t steps_in(const OptimizerState& state, std::set<std::string>& unknown) const {
    if (unknown.erase(name_ + kStep) == 0) refuse(name_ + kStep, "a step count", "none");
    const Tensor& count = state.at(name_ + kStep);
    if (count.numel() != 1 || !c10::isIntegralType(count.scalar_type(), false))
      refuse(name_ + kStep, "one integer", to_string(Shape(count.sizes().vec())));
    if (count.item<int64_t>() < 0)
      refuse(name_ + kStep, "0 or more", std::to_string(count.item<int64_t>()));
    return count.item<int64_t>();
  }

  void set_moments(const Tensor& tensor, const std::string& key, const OptimizerState& state) {
    auto moments = std::make_unique<AdamWMoments>();
    moments->step(steps_);
    moments->exp_avg(copy_for(tensor, key + kFirst, state));
    moments->exp_avg_sq(copy_for(tensor, key + kSecond, state));
    optimizer_->state()[tensor.unsafeGetTensorImpl()] = std::move(moments);
  }

  static Tensor copy_for(const Tensor& tensor, const std::string& key,
                         const OptimizerState& state) {
    const Tensor& value = state.at(key);
    if (value.sizes() != tensor.sizes()) {
      refuse(key, "shape " + to_string(Shape(tensor.sizes().vec())),
             to_string(Shape(value.sizes().vec())));
    }
    return value.to(tensor.options(), /*non_blocking=*/false, /*copy=*/true);
  }

  std::string name_;
  AdamW adamw_;
  std::optional<double> clip_;
  Bug bug_;
  AdamWKernels kernels_;
  std::vector<std::string> names_;
  std::vector<Tensor> tensors_;
  std::unique_ptr<torch::optim::AdamW> optimizer_;
  int64_t steps_ = 0;
};

class GroupedAdamW : public Optimizer {
 public:
  GroupedAdamW(const std::vector<Group>& groups, const TensorTable& parameters, Bug bug,
               const AdamWKernels& kernels) {
    std::set<std::string> taken;
    for (const Group& group : groups) {
      groups_.emplace_back(group, parameters, bug, kernels);
      for (const std::string& name : groups_.back().names()) claim(name, taken);
    }
  }

  std::vector<double> step(TensorTable& parameters, const TensorTable& gradients) override {
    torch::NoGradGuard no_grad;
    std::vector<double> norms;
    for (GroupOptimizer& group : groups_) norms.push_back(group.step(parameters, gradients));
    return norms;
  }

  OptimizerState state() const override {
    OptimizerState state;
    for (const GroupOptimizer& group : groups_) group.write(state);
    return state;
  }

  void set_state(const OptimizerState& state) override {
    torch::NoGradGuard no_grad;
    std::set<std::string> unknown(state.names().begin(), state.names().end());
    for (GroupOptimizer& group : groups_) group.read(state, unknown);
    if (unknown.empty()) return;
    throw Error(ExitCode::artefact, {.where = "optimizer state",
                                     .what = "entry",
                                     .expected = "a moment of a parameter of this optimizer",
                                     .got = *unknown.begin()});
  }

 private:
  static void claim(const std::string& name, std::set<std::string>& taken) {
    if (taken.insert(name).second) return;
    throw Error(ExitCode::internal,
                {.where = "optimizer", .what = name, .expected = "one group", .got = "two"});
  }

  std::vector<GroupOptimizer> groups_;
};

}  // namespace

std::vector<std::string> parameters_of(const Group& group, const TensorTable& parameters) {
  std::vector<std::string> names;
  for (const std::string& name : parameters.names())
    if (!group.takes || group.takes(name)) names.push_back(name);
  return names;
}

std::unique_ptr<Optimizer> make_adamw(std::vector<Group> groups, const TensorTable& parameters,
                                      Bug bug, const AdamWKernels& kernels) {
  if (kernels.update && bug != Bug::none) {
    throw Error(ExitCode::internal, {.where = "optimizer",
                                     .what = "kernels",
                                     .expected = "no planted bug",
                                     .got = "bug " + std::to_string(static_cast<int>(bug))});
  }
  return std::make_unique<GroupedAdamW>(groups, parameters, bug, kernels);
}

}  // namespace dsv32::training
