#include "src/optimized/ops/rms_norm.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

RmsNormOutputs rms_norm_outputs(const char* op, const at::Tensor& x,
                                const std::optional<at::Tensor>& residual,
                                const at::Tensor& weight) {
  const Argument source{op, "x", x};
  expect_real(source);
  expect_rank_from(source, 1);
  expect_elements(source);
  expect_like({op, "weight", weight}, source);
  expect_shape({op, "weight", weight}, {x.sym_size(-1)});
  if (residual.has_value()) {
    expect_like({op, "residual", *residual}, source);
    expect_shape({op, "residual", *residual}, x.sym_sizes());
  }
  const c10::SymIntArrayRef shape = x.sym_sizes();
  return {.y = empty_as(x, shape, x.scalar_type()),
          .sum = residual.has_value() ? empty_as(x, shape, x.scalar_type()) : at::Tensor(),
          .rstd = empty_as(x, shape.slice(0, shape.size() - 1), at::kFloat)};
}

RmsNormGradients rms_norm_gradients(const at::Tensor& dy, const at::Tensor& x,
                                    const at::Tensor& weight, const at::Tensor& rstd,
                                    const std::optional<at::Tensor>& dsum) {
  constexpr const char* op = "rms_norm_backward";
  const Argument source{op, "x", x};
  expect_real(source);
  expect_rank_from(source, 1);
  expect_elements(source);
  expect_at_most(source, -1, kRmsNormMaxWidth);
  const c10::SymIntArrayRef shape = x.sym_sizes();
  expect_like({op, "dy", dy}, source);
  expect_shape({op, "dy", dy}, shape);
  expect_like({op, "weight", weight}, source);
  expect_shape({op, "weight", weight}, {x.sym_size(-1)});
  expect_dtype({op, "rstd", rstd}, at::kFloat);
  expect_device_of({op, "rstd", rstd}, source);
  expect_shape({op, "rstd", rstd}, shape.slice(0, shape.size() - 1));
  if (dsum.has_value()) {
    expect_like({op, "dsum", *dsum}, source);
    expect_shape({op, "dsum", *dsum}, shape);
  }
  return {.dx = empty_as(x, shape, x.scalar_type()),
          .dweight = empty_as(x, {x.sym_size(-1)}, at::kFloat)};
}

namespace {

std::tuple<at::Tensor, at::Tensor> rms_norm_meta(const at::Tensor& x, const at::Tensor& weight,
                                                 double) {
  const RmsNormOutputs out = rms_norm_outputs("rms_norm", x, std::nullopt, weight);
  return {out.y, out.rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm_meta(const at::Tensor& x,
                                                                 const at::Tensor& residual,
                                                                 const at::Tensor& weight, double) {
  const RmsNormOutputs out = rms_norm_outputs("add_rms_norm", x, residual, weight);
  return {out.y, out.sum, out.rstd};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward_meta(const at::Tensor& dy, const at::Tensor& x,
                                                          const at::Tensor& weight,
                                                          const at::Tensor& rstd,
                                                          const std::optional<at::Tensor>& dsum) {
  const RmsNormGradients out = rms_norm_gradients(dy, x, weight, rstd, dsum);
  return {out.dx, out.dweight};
}

void schemas(torch::Library& m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor rstd)");
  m.def(
      "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps)"
      " -> (Tensor y, Tensor sum, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd, Tensor? dsum=None)"
      " -> (Tensor dx, Tensor dweight)");
}

void meta(torch::Library& m) {
  m.impl("rms_norm", &rms_norm_meta);
  m.impl("add_rms_norm", &add_rms_norm_meta);
  m.impl("rms_norm_backward", &rms_norm_backward_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
