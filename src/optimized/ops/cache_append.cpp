#include "src/optimized/ops/cache_append.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

void expect_cache_append(const at::Tensor& cache, const at::Tensor& fresh, int64_t first) {
  constexpr const char* op = "cache_append";
  const Argument target{op, "cache", cache}, source{op, "fresh", fresh};
  expect_real(target);
  expect_rank(target, 3);
  expect_rank(source, 3);
  expect_like(source, target);
  TORCH_CHECK(cache.is_contiguous(), op, ": cache: expected a contiguous tensor, got strides ",
              cache.sym_strides());
  expect_shape(source, {cache.sym_size(0), fresh.sym_size(1), cache.sym_size(2)});
  TORCH_CHECK(first >= 0 && fresh.sym_size(1) + first <= cache.sym_size(1), op,
              ": first: expected 0 to ", cache.sym_size(1) - fresh.sym_size(1), ", got ", first);
}

namespace {

void cache_append_meta(const at::Tensor& cache, const at::Tensor& fresh, int64_t first) {
  expect_cache_append(cache, fresh, first);
}

void schemas(torch::Library& m) {
  m.def("cache_append(Tensor(a!) cache, Tensor fresh, int first) -> ()");
}

void meta(torch::Library& m) { m.impl("cache_append", &cache_append_meta); }

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
