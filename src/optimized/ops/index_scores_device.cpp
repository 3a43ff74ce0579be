#include "src/optimized/ops/device.h"
#include "src/optimized/ops/index_scores.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

at::Tensor index_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& weights,
                        const at::Tensor& mask, int64_t first_query) {
  return run_index_scores({q, k, weights}, {.tensor = mask, .first_query = first_query},
                          [&q](const auto& params) {
                            const DeviceScope device(q);
                            launch_index_scores(params, device.stream());
                          });
}

/// Adds the workspace and launches on the device of `q`.
auto backward_on(const at::Tensor& q) {
  return [&q](auto params) {
    const DeviceScope device(q);
    const IndexSizes& n = params.sizes;
    const auto options = q.options().dtype(at::kFloat);
    const at::Tensor partial = at::empty({index_key_splits(n), n.batch, n.keys, n.dim}, options);
    at::Tensor dense;
    if (params.topk != nullptr) dense = at::empty({n.batch, n.queries, n.keys}, options);
    params.dk_partial = mutable_pointer<float>(partial);
    params.dense_dscores = mutable_pointer<float>(dense);
    launch_index_scores_backward(params, device.stream());
  };
}

Gradients index_scores_backward(const at::Tensor& dscores, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& weights, const at::Tensor& mask,
                                int64_t first_query) {
  return run_index_scores_backward(dscores, {q, k, weights},
                                   {.tensor = mask, .first_query = first_query}, backward_on(q));
}

Gradients index_scores_backward_sparse(const at::Tensor& dscores, const at::Tensor& topk,
                                       const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& weights) {
  return run_index_scores_backward(dscores, {q, k, weights}, {.tensor = topk, .is_sparse = true},
                                   backward_on(q));
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("index_scores", &index_scores);
  m.impl("index_scores_backward", &index_scores_backward);
  m.impl("index_scores_backward_sparse", &index_scores_backward_sparse);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
