#include "src/optimized/ops/hadamard.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

at::Tensor hadamard_output(const at::Tensor& x) {
  const Argument source{"hadamard", "x", x};
  expect_real(source);
  expect_rank_from(source, 1);
  bool is_power = false;
  for (int64_t width = 1; width <= kHadamardMaxWidth; width *= 2) {
    is_power = is_power || x.sym_size(-1) == width;
  }
  TORCH_CHECK(is_power, "hadamard: x: expected a power of two up to ", kHadamardMaxWidth,
              " along the last axis, got shape ", x.sym_sizes());
  return empty_as(x, x.sym_sizes(), x.scalar_type());
}

namespace {

at::Tensor hadamard_meta(const at::Tensor& x, double) { return hadamard_output(x); }

void schemas(torch::Library& m) { m.def("hadamard(Tensor x, float scale) -> Tensor"); }

void meta(torch::Library& m) { m.impl("hadamard", &hadamard_meta); }

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
