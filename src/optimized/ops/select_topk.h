#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "src/optimized/kernels/select_topk.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments; returns topk [...,k] int32, not filled.
at::Tensor select_topk_output(const at::Tensor& scores, int64_t k);

/// `run(params)` takes SelectTopkParams.
template <typename Run>
at::Tensor run_select_topk(const at::Tensor& scores, int64_t k, bool by_score, Run run) {
  at::Tensor topk = select_topk_output(scores, k);
  const at::Tensor rows = scores.contiguous();
  const int64_t count = topk.numel() / k;
  const int64_t words = by_score ? count * topk_sort_width(k) : 0;
  const at::Tensor workspace = at::empty({words}, scores.options().dtype(at::kLong));
  run(SelectTopkParams{.scores = pointer<float>(rows),
                       .topk = mutable_pointer<int32_t>(topk),
                       .workspace = mutable_pointer<uint64_t>(workspace),
                       .rows = count,
                       .keys = scores.size(-1),
                       .k = k,
                       .by_score = by_score});
  return topk;
}

}  // namespace dsv32::optimized
