#include "src/optimized/ops/fp8_linear.h"

#include <vector>

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

c10::SymInt pieces(const c10::SymInt& size, int64_t piece) { return (size + (piece - 1)) / piece; }

void expect_positive(const char* op, const char* name, int64_t value) {
  TORCH_CHECK(value >= 1, op, ": ", name, ": expected 1 or more, got ", value);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> fp8_quant_runs_outputs(const at::Tensor& x, int64_t run, bool) {
  const Argument source{"fp8_quant_runs", "x", x};
  expect_real(source);
  expect_rank_from(source, 1);
  expect_positive("fp8_quant_runs", "run", run);
  std::vector<c10::SymInt> runs = x.sym_sizes().vec();
  runs.back() = pieces(runs.back(), run);
  return {empty_as(x, x.sym_sizes(), at::kByte), empty_as(x, runs, at::kFloat)};
}

at::Tensor fp8_linear_output(const Fp8LinearOperands& o) {
  constexpr const char* op = "fp8_linear";
  const Argument x{op, "x", o.x}, w{op, "w", o.w};
  expect_dtype(x, at::kByte);
  expect_rank_from(x, 1);
  expect_dtype(w, at::kByte);
  expect_rank(w, 2);
  expect_device_of(w, x);
  expect_positive(op, "block_rows", o.block_rows);
  expect_positive(op, "run", o.run);
  expect_shape(w, {o.w.sym_size(0), o.x.sym_size(-1)});
  const c10::SymInt runs = pieces(o.x.sym_size(-1), o.run);
  const Argument x_scales{op, "x_scales", o.x_scales}, w_scales{op, "w_scales", o.w_scales};
  for (const Argument* scales : {&x_scales, &w_scales}) {
    expect_dtype(*scales, at::kFloat);
    expect_device_of(*scales, x);
  }
  std::vector<c10::SymInt> shape = o.x.sym_sizes().vec();
  shape.back() = runs;
  expect_shape(x_scales, shape);
  expect_shape(w_scales, {pieces(o.w.sym_size(0), o.block_rows), runs});
  shape.back() = o.w.sym_size(0);
  return empty_as(o.x, shape, at::kBFloat16);
}

namespace {

at::Tensor fp8_linear_meta(const at::Tensor& x, const at::Tensor& x_scales, const at::Tensor& w,
                           const at::Tensor& w_scales, int64_t block_rows, int64_t run) {
  return fp8_linear_output({x, x_scales, w, w_scales, block_rows, run});
}

void schemas(torch::Library& m) {
  m.def("fp8_quant_runs(Tensor x, int run, bool powers) -> (Tensor codes, Tensor scales)");
  m.def(
      "fp8_linear(Tensor x, Tensor x_scales, Tensor w, Tensor w_scales, int block_rows, int run) "
      "-> Tensor");
}

void meta(torch::Library& m) {
  m.impl("fp8_quant_runs", &fp8_quant_runs_outputs);
  m.impl("fp8_linear", &fp8_linear_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
