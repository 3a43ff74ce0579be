#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/index_scores.h"
#include "src/optimized/ops/arguments.h"
#include "src/optimized/ops/indices.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// What forward and backward take.
struct IndexInputs {
  const at::Tensor& q;        // [B,S,HI,D] float32 or bfloat16
  const at::Tensor& k;        // [B,T,D] as q
  const at::Tensor& weights;  // [B,S,HI] float32
};

/// Which keys a query sees, or which ones dscores names.
struct IndexKeys {
  const at::Tensor& tensor;  // mask [B,T] bool, or topk [B,S,K] int32
  bool is_sparse = false;
  int64_t first_query = 0;
};

/// Checks the arguments; returns scores [B,S,T] float32, not filled.
at::Tensor index_scores_output(const IndexInputs& in, const IndexKeys& keys);

struct IndexGradients {
  at::Tensor dq;        // as q
  at::Tensor dk;        // as k
  at::Tensor dweights;  // as weights
};

/// Checks the arguments; the results are not filled.
IndexGradients index_scores_gradients(const at::Tensor& dscores, const IndexInputs& in,
                                      const IndexKeys& keys);

inline IndexSizes index_sizes(const IndexInputs& in) {
  return {.batch = in.q.size(0),
          .queries = in.q.size(1),
          .keys = in.k.size(1),
          .heads = in.q.size(2),
          .dim = in.q.size(3)};
}

/// `run(params)` takes IndexScoresParams<float> and <bf16>.
template <typename Run>
at::Tensor run_index_scores(const IndexInputs& in, const IndexKeys& keys, Run run) {
  at::Tensor scores = index_scores_output(in, keys);
  const at::Tensor q = in.q.contiguous(), k = in.k.contiguous();
  const at::Tensor weights = in.weights.contiguous(), mask = keys.tensor.contiguous();
  dispatch_real({"index_scores", "q", q}, [&](auto type) {
    using T = decltype(type);
    run(IndexScoresParams<T>{.q = pointer<T>(q),
                             .k = pointer<T>(k),
                             .weights = pointer<float>(weights),
                             .mask = pointer<bool>(mask),
                             .scores = mutable_pointer<float>(scores),
                             .sizes = index_sizes(in),
                             .first_query = keys.first_query});
  });
  return scores;
}

/// `run(params)` takes IndexScoresBackwardParams<float> and <bf16> without workspace.
template <typename Run>
std::tuple<at::Tensor, at::Tensor, at::Tensor> run_index_scores_backward(const at::Tensor& dscores,
                                                                         const IndexInputs& in,
                                                                         const IndexKeys& keys,
                                                                         Run run) {
  IndexGradients out = index_scores_gradients(dscores, in, keys);
  const IndexSizes sizes = index_sizes(in);
  if (keys.is_sparse) {
    expect_indices({"index_scores_backward_sparse", "topk", keys.tensor}, sizes.keys, -1);
  }
  const at::Tensor q = in.q.contiguous(), k = in.k.contiguous();
  const at::Tensor weights = in.weights.contiguous(), slopes = dscores.contiguous();
  const at::Tensor key_rows = keys.tensor.contiguous();
  dispatch_real({"index_scores_backward", "q", q}, [&](auto type) {
    using T = decltype(type);
    run(IndexScoresBackwardParams<T>{.dscores = pointer<float>(slopes),
                                     .topk = keys.is_sparse ? pointer<int32_t>(key_rows) : nullptr,
                                     .q = pointer<T>(q),
                                     .k = pointer<T>(k),
                                     .weights = pointer<float>(weights),
                                     .mask = keys.is_sparse ? nullptr : pointer<bool>(key_rows),
                                     .dq = mutable_pointer<T>(out.dq),
                                     .dk = mutable_pointer<T>(out.dk),
                                     .dweights = mutable_pointer<float>(out.dweights),
                                     .sizes = sizes,
                                     .first_query = keys.is_sparse ? sizes.keys : keys.first_query,
                                     .topk_width = keys.is_sparse ? dscores.size(2) : 0});
  });
  return {out.dq, out.dk, out.dweights};
}

}  // namespace dsv32::optimized
