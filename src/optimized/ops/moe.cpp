#include "src/optimized/ops/moe.h"

#include "src/optimized/ops/indices.h"
#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

void expect_weights(const Argument& source, const char* name, at::TensorList weights, size_t count,
                    c10::SymIntArrayRef shape) {
  TORCH_CHECK(weights.size() == count, source.op, ": ", name, ": expected ", count,
              " experts, got ", weights.size());
  for (const at::Tensor& weight : weights) {
    expect_like({source.op, name, weight}, source);
    expect_shape({source.op, name, weight}, shape);
  }
}

std::vector<at::Tensor> empty_each(at::TensorList like) {
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& tensor : like) {
    tensors.push_back(empty_as(tensor, tensor.sym_sizes(), tensor.scalar_type()));
  }
  return tensors;
}

}  // namespace

at::Tensor moe_output(const char* op, const MoeArguments& a) {
  const Argument source{op, "x", a.x};
  expect_real(source);
  TORCH_CHECK(a.x.dim() == 2, op, ": x: expected 2 axes, got shape ", a.x.sym_sizes());
  const c10::SymInt tokens = a.x.sym_size(0), hidden = a.x.sym_size(1);
  expect_dtype({op, "experts", a.experts}, at::kInt);
  expect_device_of({op, "experts", a.experts}, source);
  TORCH_CHECK(a.experts.dim() == 2, op, ": experts: expected 2 axes, got shape ",
              a.experts.sym_sizes());
  expect_shape({op, "experts", a.experts}, {tokens, a.experts.sym_size(1)});
  expect_dtype({op, "weights", a.weights}, at::kFloat);
  expect_device_of({op, "weights", a.weights}, source);
  expect_shape({op, "weights", a.weights}, a.experts.sym_sizes());
  TORCH_CHECK(!a.gate.empty(), op, ": gate: expected 1 or more experts, got 0");
  TORCH_CHECK(a.gate[0].dim() == 2, op, ": gate: expected 2 axes, got shape ",
              a.gate[0].sym_sizes());
  const c10::SymInt width = a.gate[0].sym_size(0);
  expect_weights(source, "gate", a.gate, a.gate.size(), {width, hidden});
  expect_weights(source, "up", a.up, a.gate.size(), {width, hidden});
  expect_weights(source, "down", a.down, a.gate.size(), {hidden, width});
  return empty_as(a.x, a.x.sym_sizes(), a.x.scalar_type());
}

void expect_sum(const char* op, const at::Tensor& sum, const MoeArguments& a) {
  const Argument source{op, "x", a.x};
  moe_output(op, a);
  expect_dtype({op, "sum", sum}, at::kFloat);
  expect_device_of({op, "sum", sum}, source);
  expect_shape({op, "sum", sum}, a.x.sym_sizes());
  TORCH_CHECK(sum.is_contiguous(), op, ": sum: expected a contiguous tensor, got strides ",
              sum.sym_strides());
}

namespace {

MoeGradients weight_gradients(const char* op, const at::Tensor& dout, const MoeArguments& a) {
  expect_like({op, "dout", dout}, {op, "x", a.x});
  expect_shape({op, "dout", dout}, a.x.sym_sizes());
  return {.dx = {},
          .dx_sum = {},
          .dweights = at::zeros_symint(a.weights.sym_sizes(), a.weights.options()),
          .dgate = empty_each(a.gate),
          .dup = empty_each(a.up),
          .ddown = empty_each(a.down)};
}

}  // namespace

MoeGradients moe_gradients(const at::Tensor& dout, const MoeArguments& a) {
  constexpr const char* op = "moe_backward";
  const at::Tensor dx = moe_output(op, a);
  MoeGradients gradients = weight_gradients(op, dout, a);
  gradients.dx = dx;
  return gradients;
}

MoeGradients moe_added_gradients(const at::Tensor& sum, const at::Tensor& dout,
                                 const MoeArguments& a) {
  constexpr const char* op = "moe_backward_add";
  expect_sum(op, sum, a);
  MoeGradients gradients = weight_gradients(op, dout, a);
  gradients.dx_sum = sum.clone();
  return gradients;
}

void expect_experts(const char* op, const MoeArguments& a) {
  expect_indices({op, "experts", a.experts}, a.count(), -1);
}

namespace {

at::Tensor moe_meta(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& weights,
                    at::TensorList gate, at::TensorList up, at::TensorList down) {
  return moe_output("moe", {x, experts, weights, gate, up, down});
}

auto moe_backward_meta(const at::Tensor& dout, const at::Tensor& x, const at::Tensor& experts,
                       const at::Tensor& weights, at::TensorList gate, at::TensorList up,
                       at::TensorList down) {
  return moe_gradients(dout, {x, experts, weights, gate, up, down}).tuple();
}

void moe_add_meta(const at::Tensor& sum, const at::Tensor& x, const at::Tensor& experts,
                  const at::Tensor& weights, at::TensorList gate, at::TensorList up,
                  at::TensorList down) {
  expect_sum("moe_add", sum, {x, experts, weights, gate, up, down});
}

auto moe_backward_add_meta(const at::Tensor& sum, const at::Tensor& dout, const at::Tensor& x,
                           const at::Tensor& experts, const at::Tensor& weights,
                           at::TensorList gate, at::TensorList up, at::TensorList down) {
  return moe_added_gradients(sum, dout, {x, experts, weights, gate, up, down}).tuple();
}

void schemas(torch::Library& m) {
  m.def(
      "moe(Tensor x, Tensor experts, Tensor weights, Tensor[] gate, Tensor[] up, Tensor[] down)"
      " -> Tensor");
  m.def(
      "moe_add(Tensor(a!) sum, Tensor x, Tensor experts, Tensor weights, Tensor[] gate,"
      " Tensor[] up, Tensor[] down) -> ()");
  m.def(
      "moe_backward(Tensor dout, Tensor x, Tensor experts, Tensor weights, Tensor[] gate,"
      " Tensor[] up, Tensor[] down)"
      " -> (Tensor dx, Tensor dweights, Tensor[] dgate, Tensor[] dup, Tensor[] ddown)");
  m.def(
      "moe_backward_add(Tensor sum, Tensor dout, Tensor x, Tensor experts, Tensor weights,"
      " Tensor[] gate, Tensor[] up, Tensor[] down)"
      " -> (Tensor dx_sum, Tensor dweights, Tensor[] dgate, Tensor[] dup, Tensor[] ddown)");
}

void meta(torch::Library& m) {
  m.impl("moe", &moe_meta);
  m.impl("moe_add", &moe_add_meta);
  m.impl("moe_backward", &moe_backward_meta);
  m.impl("moe_backward_add", &moe_backward_add_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
