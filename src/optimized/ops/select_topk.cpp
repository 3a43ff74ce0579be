#include "src/optimized/ops/select_topk.h"

#include <limits>

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

at::Tensor select_topk_output(const at::Tensor& scores, int64_t k) {
  const Argument source{"select_topk", "scores", scores};
  expect_dtype(source, at::kFloat);
  expect_rank_from(source, 1);
  expect_at_most(source, -1, std::numeric_limits<int32_t>::max());
  TORCH_CHECK(k >= 1 && k <= kMaxTopk, "select_topk: k: expected 1 to ", kMaxTopk, ", got ", k);
  std::vector<c10::SymInt> shape = scores.sym_sizes().vec();
  shape.back() = k;
  return empty_as(scores, shape, at::kInt);
}

namespace {

at::Tensor select_topk_meta(const at::Tensor& scores, int64_t k, bool) {
  return select_topk_output(scores, k);
}

void schemas(torch::Library& m) {
  m.def("select_topk(Tensor scores, int k, bool by_score=False) -> Tensor");
}

void meta(torch::Library& m) { m.impl("select_topk", &select_topk_meta); }

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
