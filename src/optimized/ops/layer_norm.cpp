#include "src/optimized/ops/layer_norm.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

using Triple = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

}  // namespace

Triple layer_norm_outputs(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  constexpr const char* op = "layer_norm";
  const Argument source{op, "x", x};
  expect_real(source);
  expect_rank_from(source, 1);
  expect_elements(source);
  expect_like({op, "weight", weight}, source);
  expect_shape({op, "weight", weight}, {x.sym_size(-1)});
  expect_like({op, "bias", bias}, source);
  expect_shape({op, "bias", bias}, {x.sym_size(-1)});
  const c10::SymIntArrayRef shape = x.sym_sizes(), rows = shape.slice(0, shape.size() - 1);
  return {empty_as(x, shape, x.scalar_type()), empty_as(x, rows, at::kFloat),
          empty_as(x, rows, at::kFloat)};
}

Triple layer_norm_gradients(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& mean, const at::Tensor& rstd) {
  constexpr const char* op = "layer_norm_backward";
  const Argument source{op, "x", x};
  expect_real(source);
  expect_rank_from(source, 1);
  expect_elements(source);
  expect_at_most(source, -1, kLayerNormMaxWidth);
  const c10::SymIntArrayRef shape = x.sym_sizes(), rows = shape.slice(0, shape.size() - 1);
  const std::vector<c10::SymInt> row = {x.sym_size(-1)};
  expect_like({op, "dy", dy}, source);
  expect_shape({op, "dy", dy}, shape);
  expect_like({op, "weight", weight}, source);
  expect_shape({op, "weight", weight}, row);
  for (const Argument& statistic : {Argument{op, "mean", mean}, Argument{op, "rstd", rstd}}) {
    expect_dtype(statistic, at::kFloat);
    expect_device_of(statistic, source);
    expect_shape(statistic, rows);
  }
  return {empty_as(x, shape, x.scalar_type()), empty_as(x, row, at::kFloat),
          empty_as(x, row, at::kFloat)};
}

namespace {

Triple layer_norm_meta(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       double) {
  return layer_norm_outputs(x, weight, bias);
}

void schemas(torch::Library& m) {
  m.def(
      "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd)"
      " -> (Tensor dx, Tensor dweight, Tensor dbias)");
}

void meta(torch::Library& m) {
  m.impl("layer_norm", &layer_norm_meta);
  m.impl("layer_norm_backward", &layer_norm_gradients);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
