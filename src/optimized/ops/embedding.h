#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "src/optimized/kernels/embedding.h"
#include "src/optimized/ops/arguments.h"
#include "src/optimized/ops/indices.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments; returns dweight [vocab,hidden], zeros.
at::Tensor embedding_backward_output(const at::Tensor& dout, const at::Tensor& ids, int64_t vocab);

/// `run(params)` takes EmbeddingBackwardParams<float> and <bf16>.
template <typename Run>
at::Tensor run_embedding_backward(const at::Tensor& dout, const at::Tensor& ids, int64_t vocab,
                                  Run run) {
  at::Tensor dweight = embedding_backward_output(dout, ids, vocab);
  expect_indices({"embedding_backward", "ids", ids}, vocab);
  const auto [sorted, order] = at::sort(ids, /*stable=*/true, 0, /*descending=*/false);
  const at::Tensor rows = dout.contiguous();
  dispatch_real({"embedding_backward", "dout", dout},
                [&, &ids = sorted, &order = order](auto type) {
                  using T = decltype(type);
                  run(EmbeddingBackwardParams<T>{.dout = pointer<T>(rows),
                                                 .ids = pointer<int64_t>(ids),
                                                 .order = pointer<int64_t>(order),
                                                 .dweight = mutable_pointer<T>(dweight),
                                                 .tokens = dout.size(0),
                                                 .hidden = dout.size(1),
                                                 .vocabulary = vocab});
                });
  return dweight;
}

}  // namespace dsv32::optimized
