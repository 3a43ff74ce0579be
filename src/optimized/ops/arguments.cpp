#include "src/optimized/ops/arguments.h"

#include <algorithm>

namespace dsv32::optimized {

void expect_real(const Argument& a) {
  const at::ScalarType dtype = a.tensor.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, a.op, ": ", a.name,
              ": expected float32 or bfloat16, got ", dtype);
}

void expect_dtype(const Argument& a, at::ScalarType dtype) {
  TORCH_CHECK(a.tensor.scalar_type() == dtype, a.op, ": ", a.name, ": expected ", dtype, ", got ",
              a.tensor.scalar_type());
}

void expect_rank_from(const Argument& a, int64_t rank) {
  TORCH_CHECK(a.tensor.dim() >= rank, a.op, ": ", a.name, ": expected ", rank,
              " axes or more, got shape ", a.tensor.sym_sizes());
}

void expect_rank(const Argument& a, int64_t rank) {
  TORCH_CHECK(a.tensor.dim() == rank, a.op, ": ", a.name, ": expected ", rank, " axes, got shape ",
              a.tensor.sym_sizes());
}

void expect_shape(const Argument& a, c10::SymIntArrayRef shape) {
  const c10::SymIntArrayRef own = a.tensor.sym_sizes();
  TORCH_CHECK(std::equal(own.begin(), own.end(), shape.begin(), shape.end()), a.op, ": ", a.name,
              ": expected shape ", shape, ", got ", own);
}

void expect_elements(const Argument& a) {
  TORCH_CHECK(a.tensor.sym_size(-1) > 0, a.op, ": ", a.name,
              ": expected 1 element or more along the last axis, got shape ", a.tensor.sym_sizes());
}

void expect_at_most(const Argument& a, int64_t axis, int64_t limit) {
  TORCH_CHECK(a.tensor.sym_size(axis) <= limit, a.op, ": ", a.name, ": expected at most ", limit,
              " elements along axis ", axis, ", got shape ", a.tensor.sym_sizes());
}

void expect_like(const Argument& a, const Argument& other) {
  TORCH_CHECK(a.tensor.scalar_type() == other.tensor.scalar_type(), a.op, ": ", a.name,
              ": expected ", other.tensor.scalar_type(), " as ", other.name, ", got ",
              a.tensor.scalar_type());
  expect_device_of(a, other);
}

void expect_device_of(const Argument& a, const Argument& other) {
  TORCH_CHECK(a.tensor.device() == other.tensor.device(), a.op, ": ", a.name, ": expected device ",
              other.tensor.device(), " as ", other.name, ", got ", a.tensor.device());
}

at::Tensor empty_as(const at::Tensor& like, c10::SymIntArrayRef shape, at::ScalarType dtype) {
  return at::empty_symint(shape, like.options().dtype(dtype));
}

}  // namespace dsv32::optimized
