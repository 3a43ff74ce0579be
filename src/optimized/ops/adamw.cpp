#include "src/optimized/ops/adamw.h"

#include <cmath>

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

constexpr const char* kAdamw = "adamw_";

/// A float32 tensor of the size of its parameter, updated in place.
void expect_state(const char* name, const at::Tensor& tensor, const at::Tensor& parameter) {
  const Argument argument{kAdamw, name, tensor};
  expect_dtype(argument, at::kFloat);
  expect_device_of(argument, {kAdamw, "parameters", parameter});
  expect_shape(argument, parameter.sym_sizes());
  TORCH_CHECK(tensor.is_contiguous(), kAdamw, ": ", name, ": expected contiguous, got strides ",
              tensor.sym_strides());
}

void expect_count(const char* name, at::TensorList tensors, size_t count) {
  TORCH_CHECK(tensors.size() == count, kAdamw, ": ", name, ": expected ", count, " tensors, got ",
              tensors.size());
}

/// float32 or bf16, all alike.
void expect_gradients(const char* op, at::TensorList gradients) {
  if (gradients.empty()) return;
  const Argument first{op, "grads", gradients[0]};
  expect_real(first);
  for (const at::Tensor& gradient : gradients) expect_like({op, "grads", gradient}, first);
}

}  // namespace

at::Tensor grad_norm_output(at::TensorList gradients) {
  expect_gradients("grad_norm", gradients);
  TORCH_CHECK(!gradients.empty(), "grad_norm: grads: expected 1 or more tensors, got 0");
  return empty_as(gradients[0], {}, at::kDouble);
}

void expect_adamw(const AdamwArguments& a, const AdamwOptions& options) {
  const size_t count = a.parameters.size();
  expect_count("grads", a.gradients, count);
  expect_count("exp_avg", a.exp_avg, count);
  expect_count("exp_avg_sq", a.exp_avg_sq, count);
  expect_gradients(kAdamw, a.gradients);
  for (size_t i = 0; i < count; ++i) {
    expect_state("parameters", a.parameters[i], a.parameters[i]);
    expect_state("exp_avg", a.exp_avg[i], a.parameters[i]);
    expect_state("exp_avg_sq", a.exp_avg_sq[i], a.parameters[i]);
    expect_shape({kAdamw, "grads", a.gradients[i]}, a.parameters[i].sym_sizes());
    expect_device_of({kAdamw, "grads", a.gradients[i]}, {kAdamw, "parameters", a.parameters[i]});
    expect_device_of({kAdamw, "parameters", a.parameters[i]}, {kAdamw, "clip_scale", a.clip_scale});
  }
  expect_dtype({kAdamw, "clip_scale", a.clip_scale}, at::kFloat);
  expect_shape({kAdamw, "clip_scale", a.clip_scale}, {});
  TORCH_CHECK(options.step >= 1, kAdamw, ": step: expected 1 or more, got ", options.step);
  const auto expect_beta = [](const char* name, double beta) {
    TORCH_CHECK(beta >= 0 && beta < 1, kAdamw, ": ", name, ": expected 0 <= ", name, " < 1, got ",
                beta);
  };
  expect_beta("beta1", options.beta1);
  expect_beta("beta2", options.beta2);
}

AdamwFactors adamw_factors(const AdamwOptions& o) {
  const auto step = static_cast<double>(o.step);
  const auto rounded = [](double x) { return static_cast<float>(x); };
  return {.decay = rounded(1 - o.lr * o.weight_decay),
          .weight_decay = rounded(o.weight_decay),
          .beta1_rest = rounded(1 - o.beta1),
          .beta2 = rounded(o.beta2),
          .beta2_rest = rounded(1 - o.beta2),
          .step_size = rounded(o.lr / (1 - std::pow(o.beta1, step))),
          .root = rounded(std::sqrt(1 - std::pow(o.beta2, step))),
          .eps = rounded(o.eps)};
}

std::vector<at::Tensor> contiguous_each(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.contiguous());
  return result;
}

namespace {

void adamw_meta(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avg,
                at::TensorList exp_avg_sq, int64_t step, double lr, double beta1, double beta2,
                double eps, double weight_decay, const at::Tensor& clip_scale) {
  expect_adamw({parameters, gradients, exp_avg, exp_avg_sq, clip_scale},
               {step, lr, beta1, beta2, eps, weight_decay});
}

void schemas(torch::Library& m) {
  m.def(
      "adamw_(Tensor(a!)[] parameters, Tensor[] grads, Tensor(b!)[] exp_avg,"
      " Tensor(c!)[] exp_avg_sq, int step, float lr, float beta1, float beta2, float eps,"
      " float weight_decay, Tensor clip_scale) -> ()");
  m.def("grad_norm(Tensor[] grads) -> Tensor");
}

void meta(torch::Library& m) {
  m.impl("adamw_", &adamw_meta);
  m.impl("grad_norm", &grad_norm_output);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
