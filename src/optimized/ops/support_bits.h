#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "src/optimized/kernels/support_bits.h"
#include "src/optimized/ops/arguments.h"
#include "src/optimized/ops/indices.h"

/// This header leads from tensors to Params, in the same way for every kernel of the ops.
namespace dsv32::optimized {

/// Checks the arguments; returns [B,S,ceil(keys/32)] int32, not filled.
at::Tensor support_bits_output(const at::Tensor& topk, int64_t keys);
at::Tensor visible_bits_output(const at::Tensor& mask, int64_t queries, int64_t first_query);

/// `run` takes SupportBitsParams.
template <typename Run>
at::Tensor run_support_bits(const at::Tensor& topk, int64_t keys, Run run) {
  at::Tensor words = support_bits_output(topk, keys);
  expect_indices({"support_bits", "topk", topk}, keys, -1);
  const at::Tensor lists = topk.contiguous();
  run(SupportBitsParams{.topk = pointer<int32_t>(lists),
                        .words = mutable_pointer<int32_t>(words),
                        .rows = topk.size(0) * topk.size(1),
                        .slots = topk.size(2),
                        .keys = keys});
  return words;
}

/// `run` takes VisibleBitsParams.
template <typename Run>
at::Tensor run_visible_bits(const at::Tensor& mask, int64_t queries, int64_t first_query, Run run) {
  at::Tensor words = visible_bits_output(mask, queries, first_query);
  const at::Tensor rows = mask.contiguous();
  run(VisibleBitsParams{.mask = pointer<bool>(rows),
                        .words = mutable_pointer<int32_t>(words),
                        .batch = mask.size(0),
                        .queries = queries,
                        .keys = mask.size(1),
                        .first_query = first_query});
  return words;
}

}  // namespace dsv32::optimized
