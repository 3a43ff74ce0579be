#include "src/optimized/ops/linear_cross_entropy.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_outputs(const char* op, const at::Tensor& x,
                                                                const at::Tensor& weight,
                                                                const at::Tensor& labels) {
  const Argument source{op, "x", x};
  expect_real(source);
  TORCH_CHECK(x.dim() == 2, op, ": x: expected 2 axes, got shape ", x.sym_sizes());
  expect_like({op, "weight", weight}, source);
  TORCH_CHECK(weight.dim() == 2, op, ": weight: expected 2 axes, got shape ", weight.sym_sizes());
  expect_shape({op, "weight", weight}, {weight.sym_size(0), x.sym_size(1)});
  expect_dtype({op, "labels", labels}, at::kLong);
  expect_device_of({op, "labels", labels}, source);
  expect_shape({op, "labels", labels}, {x.sym_size(0)});
  return {empty_as(x, {}, at::kFloat), empty_as(x, {x.sym_size(0)}, at::kDouble)};
}

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_gradients(const at::Tensor& dloss,
                                                                  const at::Tensor& x,
                                                                  const at::Tensor& weight,
                                                                  const at::Tensor& labels,
                                                                  const at::Tensor& lse) {
  constexpr const char* op = "linear_cross_entropy_backward";
  linear_cross_entropy_outputs(op, x, weight, labels);
  const Argument source{op, "x", x};
  expect_dtype({op, "dloss", dloss}, at::kFloat);
  expect_device_of({op, "dloss", dloss}, source);
  expect_shape({op, "dloss", dloss}, {});
  expect_dtype({op, "lse", lse}, at::kDouble);
  expect_device_of({op, "lse", lse}, source);
  expect_shape({op, "lse", lse}, {x.sym_size(0)});
  return {at::zeros_symint(x.sym_sizes(), x.options()),
          at::zeros_symint(weight.sym_sizes(), weight.options())};
}

namespace {

std::tuple<at::Tensor, at::Tensor> linear_cross_entropy_meta(const at::Tensor& x,
                                                             const at::Tensor& weight,
                                                             const at::Tensor& labels) {
  return linear_cross_entropy_outputs("linear_cross_entropy", x, weight, labels);
}

void schemas(torch::Library& m) {
  m.def(
      "linear_cross_entropy(Tensor x, Tensor weight, Tensor labels) -> (Tensor loss, Tensor lse)");
  m.def(
      "linear_cross_entropy_backward(Tensor dloss, Tensor x, Tensor weight, Tensor labels,"
      " Tensor lse) -> (Tensor dx, Tensor dweight)");
}

void meta(torch::Library& m) {
  m.impl("linear_cross_entropy", &linear_cross_entropy_meta);
  m.impl("linear_cross_entropy_backward", &linear_cross_entropy_gradients);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
