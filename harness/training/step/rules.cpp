#include "harness/training/step/rules.h"

#include <algorithm>
#include <cmath>

#include "src/model/tensor.h"

namespace dsv32::harness {
namespace {

constexpr double kAboveEps = 100;

bool of_expert(const std::string& name) { return name.find(".mlp.experts.") != std::string::npos; }

/// Sum of the parts with these weights.
Tensors combined(const Parts& parts, const std::function<double(const PartGradients&)>& weight) {
  Tensors sum;
  for (const PartGradients& part : parts) {
    const double factor = weight(part);
    for (const auto& [name, values] : part.gradients) {
      std::vector<double>& to = sum[name];
      to.resize(values.size(), 0);
      for (size_t i = 0; i < values.size(); ++i) to[i] += factor * values[i];
    }
  }
  return sum;
}

Tensors token_mean(const Parts& parts, const StepRecipe&) {
  double all = 0;
  for (const PartGradients& part : parts) all += static_cast<double>(part.tokens);
  return combined(
      parts, [&](const PartGradients& part) { return static_cast<double>(part.tokens) / all; });
}

Tensors last_micro_batch(const Parts& parts, const StepRecipe& r) {
  return combined(parts, [&](const PartGradients& part) {
    return part.micro == r.micro_batches - 1 ? 1.0 / static_cast<double>(r.world) : 0;
  });
}

Tensors first_micro_batch(const Parts& parts, const StepRecipe& r) {
  return combined(parts, [&](const PartGradients& part) {
    return part.micro == 0 ? 1.0 / static_cast<double>(r.world) : 0;
  });
}

/// The last one of rank 0 is added after the reduction, and so not averaged over the ranks.
Tensors last_after_reduction(const Parts& parts, const StepRecipe& r) {
  const double share = 1.0 / static_cast<double>(r.micro_batches);
  return combined(parts, [&](const PartGradients& part) {
    if (part.micro == r.micro_batches - 1) return part.rank == 0 ? share : 0;
    return share / static_cast<double>(r.world);
  });
}

Tensors first_rank(const Parts& parts, const StepRecipe& r) {
  return combined(parts, [&](const PartGradients& part) {
    return part.rank == 0 ? 1.0 / static_cast<double>(r.micro_batches) : 0;
  });
}

double to_bfloat16(double value) {
  return HostTensor::from_doubles(DType::bfloat16, {1}, std::vector<double>{value}).at(0);
}

/// Each rank's accumulator is rounded to bfloat16 after every addition.
Tensors in_bfloat16(const Parts& parts, const StepRecipe& r) {
  Parts ranks(static_cast<size_t>(r.world));
  for (const PartGradients& part : parts) {
    PartGradients& rank = ranks[static_cast<size_t>(part.rank)];
    for (const auto& [name, values] : part.gradients) {
      std::vector<double>& to = rank.gradients[name];
      to.resize(values.size(), 0);
      for (size_t i = 0; i < values.size(); ++i)
        to[i] = to_bfloat16(to[i] + to_bfloat16(values[i] / static_cast<double>(r.micro_batches)));
    }
  }
  return mean_gradient(ranks, r);
}

}  // namespace

Tensors mean_gradient(const Parts& parts, const StepRecipe&) {
  return combined(parts,
                  [&](const PartGradients&) { return 1.0 / static_cast<double>(parts.size()); });
}

const std::vector<StepFault>& step_faults() {
  static const std::vector<StepFault> all = {
      {"clip-missing", "the gradients are not clipped", {.clip = ClipBy::none}},
      {"clip-without-experts",
       "the norm that gradients are clipped by leaves out the routed experts",
       {.clip = ClipBy::without_experts}},
      {"clip-per-group",
       "the routed experts and the rest are clipped by norms of their own",
       {.clip = ClipBy::each_group}},
      {"step-count-plus-one",
       "the optimizer counts its steps from one too many on",
       {.counted_before = 1}},
      {"bias-correction-missing",
       "the moments are not corrected for their start at 0",
       {.corrects_bias = false}},
      {"bias-correction-missing",
       "the moments are not corrected for their start at 0",
       {.corrects_bias = false, .scales_decay = true}},
      {"weight-decay-missing", "there is no weight decay", {.decays = false}},
      {"weight-decay-in-gradient",
       "weight decay is added to the gradient (L2)",
       {.decay_in_gradient = true}},
      {"betas-exchanged", "the two betas are exchanged", {.swaps_betas = true}},
      {"gradient-sign", "the gradients have the opposite sign", {.sign = -1}},
      {"gradients-not-zeroed",
       "the gradients of the step before are still there",
       {.keeps_gradients = true}},
      {"last-micro-batch-only", "only the last micro-batch counts", {.reduce = last_micro_batch}},
      {"first-micro-batch-only",
       "only the first micro-batch counts",
       {.reduce = first_micro_batch}},
      {"last-micro-batch-unreduced",
       "the last micro-batch is added after the reduction over the ranks",
       {.reduce = last_after_reduction}},
      {"rank-0-alone", "the gradients are those of rank 0 alone", {.reduce = first_rank}},
      {"token-mean", "every token counts alike, not every micro-batch", {.reduce = token_mean}},
      {"accumulated-in-bfloat16",
       "micro-batches are summed up in bfloat16",
       {.reduce = in_bfloat16}},
  };
  return all;
}

double norm_of(const Tensors& gradients, const std::function<bool(const std::string&)>& takes) {
  double squares = 0;
  for (const auto& [name, values] : gradients)
    for (const double value : values) squares += takes(name) ? value * value : 0;
  return std::sqrt(squares);
}

double clip_factor(double clip, double norm) {
  constexpr double kTorchEps = 1e-6;
  return std::min(1.0, clip / (norm + kTorchEps));
}

Tensors StepOptimizer::reduced(const Parts& parts) const {
  if (only_.empty()) return rule_.reduce(parts, recipe_);
  Tensors gradients = mean_gradient(parts, recipe_);
  for (auto& [name, values] : rule_.reduce(parts, recipe_))
    if (about(name)) gradients[name] = values;
  return gradients;
}

Updates StepOptimizer::step(const Parts& parts, const Tensors& weights) {
  Tensors gradients = reduced(parts);
  if (rule_.keeps_gradients) {
    for (const auto& [name, old] : kept_)
      for (size_t i = 0; about(name) && i < old.size(); ++i) gradients[name][i] += old[i];
    kept_ = gradients;
  }
  ++count_;
  std::map<std::pair<std::string, bool>, double> factors;  // by optimizer, of experts
  Updates updates;
  for (const auto& [name, gradient] : gradients) {
    const auto key = std::pair(recipe_.group_of(name).name, of_expert(name));
    if (!factors.contains(key)) factors[key] = clip_factor(gradients, name);
    update(name, gradient, weights.at(name), factors[key], updates);
  }
  return updates;
}

/// By the norm of those that are clipped together with this one.
double StepOptimizer::clip_factor(const Tensors& gradients, const std::string& name) const {
  if (!recipe_.clip || rule_.clip == ClipBy::none) return 1;
  const std::string& group = recipe_.group_of(name).name;
  const auto takes = [&](const std::string& other) {
    if (recipe_.group_of(other).name != group) return false;
    if (rule_.clip == ClipBy::without_experts) return !of_expert(other);
    return rule_.clip == ClipBy::all || of_expert(other) == of_expert(name);
  };
  return harness::clip_factor(*recipe_.clip, norm_of(gradients, takes));
}

void StepOptimizer::update(const std::string& name, const std::vector<double>& gradient,
                           const std::vector<double>& weight, double clipped, Updates& to) {
  const Rule rule = about(name) ? rule_ : Rule{};
  const StepGroup& group = recipe_.group_of(name);
  const double b1 = rule.swaps_betas ? group.beta2 : group.beta1;
  const double b2 = rule.swaps_betas ? group.beta1 : group.beta2;
  const double count = static_cast<double>(count_ + rule.counted_before);
  const double c1 = rule.corrects_bias ? 1 - std::pow(b1, count) : 1;
  const double c2 = rule.corrects_bias ? 1 - std::pow(b2, count) : 1;
  std::vector<double>&m = first_[name], &v = second_[name];
  m.resize(gradient.size(), 0);
  v.resize(gradient.size(), 0);
  std::vector<double>& update = to.values[name];
  update.resize(gradient.size());
  std::vector<double> sizes(gradient.size());
  double squares = 0;
  const double correction = (1 - std::pow(b1, count)) / std::sqrt(1 - std::pow(b2, count));
  const double decay = rule.decays ? group.weight_decay * (rule.scales_decay ? correction : 1) : 0;
  for (size_t i = 0; i < gradient.size(); ++i) {
    const double g =
        rule.sign * clipped * gradient[i] + (rule.decay_in_gradient ? decay * weight[i] : 0);
    m[i] = b1 * m[i] + (1 - b1) * g;
    v[i] = b2 * v[i] + (1 - b2) * g * g;
    sizes[i] = std::sqrt(v[i] / c2);
    squares += v[i] / c2;
    const double shrink = rule.decay_in_gradient ? 0 : decay * weight[i];
    update[i] = -group.lr * (m[i] / c1 / (sizes[i] + group.eps) + shrink);
  }
  const double rms = std::sqrt(squares / static_cast<double>(std::max<size_t>(sizes.size(), 1)));
  std::vector<bool>& tell = to.tell[name];
  for (const double size : sizes)
    tell.push_back(squares == 0 || size >= std::max(recipe_.noise * rms, kAboveEps * group.eps));
}

}  // namespace dsv32::harness
