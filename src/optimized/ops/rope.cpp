#include "src/optimized/ops/rope.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

at::Tensor rope_output(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  constexpr const char* op = "rope";
  const Argument source{op, "x", x}, angles{op, "cos", cos};
  expect_real(source);
  expect_rank_from(angles, 1);
  expect_dtype(angles, at::kFloat);
  expect_device_of(angles, source);
  expect_dtype({op, "sin", sin}, at::kFloat);
  expect_like({op, "sin", sin}, angles);
  expect_shape({op, "sin", sin}, cos.sym_sizes());
  expect_rank_from(source, cos.dim());
  const int64_t leading = cos.dim() - 1;
  TORCH_CHECK(x.sym_sizes().slice(0, leading) == cos.sym_sizes().slice(0, leading), op,
              ": x: expected leading axes ", cos.sym_sizes().slice(0, leading),
              " as cos, got shape ", x.sym_sizes());
  TORCH_CHECK(x.sym_size(-1) >= 2 * cos.sym_size(-1), op, ": x: expected ", 2 * cos.sym_size(-1),
              " lanes or more for the pairs of cos, got shape ", x.sym_sizes());
  return empty_as(x, x.sym_sizes(), x.scalar_type());
}

namespace {

at::Tensor rope_meta(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool,
                     bool) {
  return rope_output(x, cos, sin);
}

void schemas(torch::Library& m) {
  m.def("rope(Tensor x, Tensor cos, Tensor sin, bool interleaved, bool inverse=False) -> Tensor");
}

void meta(torch::Library& m) { m.impl("rope", &rope_meta); }

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
