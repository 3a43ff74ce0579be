// adamw_ and grad_norm through the dispatcher, against float64 and torch.optim.AdamW.

#include <torch/optim.h>

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

const std::vector<std::vector<int64_t>> kShapes = {{3, 5}, {0, 4}, {8193}, {}, {2, 3, 4}};
constexpr double kLr = 1e-2, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kDecay = 0.1, kClip = 0.75;

class AdamwOp : public OpTest {
 protected:
  using Tensors = std::vector<at::Tensor>;

  Tensors tensors(uint64_t seed, at::ScalarType dtype = at::kFloat) const {
    Tensors list;
    for (const auto& shape : kShapes) list.push_back(random(shape, dtype, seed++));
    return list;
  }
  Tensors zeros() const {
    Tensors list;
    for (const at::Tensor& t : tensors(1)) list.push_back(at::zeros_like(t));
    return list;
  }
  at::Tensor clip() const { return at::full({}, kClip, at::kFloat).to(GetParam().device); }
  void step(const Tensors& p, const Tensors& g, const Tensors& m, const Tensors& v,
            int64_t number) const {
    call("adamw_", {p, g, m, v, number, kLr, kBeta1, kBeta2, kEps, kDecay, clip()});
  }
};

TEST_P(AdamwOp, StepsAsTorchInFloat64) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Tensors parameters = tensors(1), exp_avg = zeros(), exp_avg_sq = zeros();
    Tensors wanted;
    for (const at::Tensor& p : parameters) wanted.push_back(wide(p).clone().requires_grad_());
    torch::optim::AdamW torch_adamw(
        wanted,
        torch::optim::AdamWOptions(kLr).betas({kBeta1, kBeta2}).eps(kEps).weight_decay(kDecay));
    for (int64_t number = 1; number <= 3; ++number) {
      const Tensors gradients = tensors(10 * number, dtype);
      for (size_t i = 0; i < wanted.size(); ++i) {
        wanted[i].mutable_grad() = wide(gradients[i]) * kClip;
      }
      torch_adamw.step();
      step(parameters, gradients, exp_avg, exp_avg_sq, number);
    }
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (wanted[i].numel() == 0) continue;
      const auto& state = static_cast<torch::optim::AdamWParamState&>(
          *torch_adamw.state().at(wanted[i].unsafeGetTensorImpl()));
      expect_close("adamw.parameter", parameters[i], wanted[i].detach());
      expect_close("adamw.exp_avg", exp_avg[i], state.exp_avg());
      expect_close("adamw.exp_avg_sq", exp_avg_sq[i], state.exp_avg_sq());
    }
  }
}

TEST_P(AdamwOp, NormIsThatOfAllTensors) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const Tensors gradients = tensors(1, dtype);
    at::Tensor squares = at::zeros({}, at::kDouble);
    for (const at::Tensor& g : gradients) squares += wide(g).square().sum();
    const at::Tensor norm = call("grad_norm", {gradients})[0];
    EXPECT_EQ(norm.scalar_type(), at::kDouble);
    expect_close("grad_norm", norm.to(at::kFloat), squares.sqrt());
  }
  EXPECT_EQ(call("grad_norm", {Tensors{at::zeros({0}).to(GetParam().device)}})[0].item<double>(),
            0.0);
}

TEST_P(AdamwOp, TakesGradientsThatAreNotContiguous) {
  const Tensors a = tensors(1), b = tensors(1), gradients = tensors(5);
  Tensors loose;
  for (const at::Tensor& g : gradients) loose.push_back(strided(g));
  step(a, gradients, zeros(), zeros(), 1);
  step(b, loose, zeros(), zeros(), 1);
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].dim() > 0) expect_same_bits(a[i], b[i]);
  }
  EXPECT_EQ(call("grad_norm", {gradients})[0].item<double>(),
            call("grad_norm", {loose})[0].item<double>());
}

TEST_P(AdamwOp, GivesTheSameBitsOnEveryRun) {
  const Tensors gradients = {random({30000}, at::kFloat, 1), random({65, 9}, at::kFloat, 2)};
  expect_deterministic([&] {
    const Tensors p = {gradients[0].clone(), gradients[1].clone()};
    const auto moments = [&] { return Tensors{p[0] * 0, p[1] * 0}; };
    step(p, gradients, moments(), moments(), 2);
    return Tensors{p[0], p[1], call("grad_norm", {gradients})[0].view({1})};
  });
}

TEST_P(AdamwOp, RefusesBadInput) {
  const Tensors p = tensors(1), g = tensors(2), m = zeros(), v = zeros();
  const auto refused = [&](const std::string& text, const Tensors& parameters,
                           const Tensors& gradients, const Tensors& exp_avg, int64_t number) {
    expect_refused(
        "adamw_: " + text, "adamw_",
        {parameters, gradients, exp_avg, v, number, kLr, kBeta1, kBeta2, kEps, kDecay, clip()});
  };
  Tensors few = g, wrong = p, loose = p;
  few.pop_back();
  refused("grads: expected 5 tensors, got 4", p, few, m, 1);
  wrong[0] = p[0].to(at::kBFloat16);
  refused("parameters: expected Float, got BFloat16", wrong, g, m, 1);
  loose[0] = strided(p[0]);
  refused("parameters: expected contiguous, got strides", loose, g, m, 1);
  few = m;
  few[0] = m[0][0];
  refused("exp_avg: expected shape [3, 5], got [5]", p, g, few, 1);
  few = g;
  few[1] = g[1].to(at::kBFloat16);
  refused("grads: expected Float as grads, got BFloat16", p, few, m, 1);
  refused("step: expected 1 or more, got 0", p, g, m, 0);
  expect_refused("adamw_: beta1: expected 0 <= beta1 < 1, got 1", "adamw_",
                 {p, g, m, v, 1, kLr, 1.0, kBeta2, kEps, kDecay, clip()});
  expect_refused("grad_norm: grads: expected float32 or bfloat16, got Double", "grad_norm",
                 {Tensors{g[0].to(at::kDouble)}});
}

DSV32_ON_EVERY_BACKEND(AdamwOp);

}  // namespace
}  // namespace dsv32::suites
