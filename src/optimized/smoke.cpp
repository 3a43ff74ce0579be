#include <ATen/ATen.h>
#include <torch/library.h>

#include "src/optimized/optimized.h"

namespace dsv32::optimized {
namespace {

// x: [...] float32; the result has its shape.
at::Tensor smoke_add_one_cpu(const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat, "smoke_add_one: x: expected float32, got ",
              x.scalar_type());
  return x + 1.0;
}

}  // namespace

TORCH_LIBRARY(dsv32, m) { m.def("smoke_add_one(Tensor x) -> Tensor"); }

TORCH_LIBRARY_IMPL(dsv32, CPU, m) { m.impl("smoke_add_one", &smoke_add_one_cpu); }

void load_ops() {}

}  // namespace dsv32::optimized
