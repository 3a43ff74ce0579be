#include "src/optimized/ops/support_bits.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

at::Tensor support_bits_output(const at::Tensor& topk, int64_t keys) {
  const Argument source{"support_bits", "topk", topk};
  expect_dtype(source, at::kInt);
  expect_rank(source, 3);
  TORCH_CHECK(keys >= 0 && keys <= 32 * kMaxSupportWords, "support_bits: keys: expected 0 to ",
              32 * kMaxSupportWords, ", got ", keys);
  return empty_as(topk, {topk.sym_size(0), topk.sym_size(1), (keys + 31) / 32}, at::kInt);
}

at::Tensor visible_bits_output(const at::Tensor& mask, int64_t queries, int64_t first_query) {
  const Argument source{"visible_bits", "mask", mask};
  expect_dtype(source, at::kBool);
  expect_rank(source, 2);
  TORCH_CHECK(queries >= 0, "visible_bits: queries: expected 0 or more, got ", queries);
  TORCH_CHECK(first_query >= 0, "visible_bits: first_query: expected 0 or more, got ", first_query);
  return empty_as(mask, {mask.sym_size(0), queries, (mask.sym_size(1) + 31) / 32}, at::kInt);
}

namespace {

void schemas(torch::Library& m) {
  m.def("support_bits(Tensor topk, int keys) -> Tensor");
  m.def("visible_bits(Tensor mask, int queries, int first_query) -> Tensor");
}

void meta(torch::Library& m) {
  m.impl("support_bits", &support_bits_output);
  m.impl("visible_bits", &visible_bits_output);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
