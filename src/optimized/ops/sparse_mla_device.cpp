#include <algorithm>

#include "src/optimized/ops/device.h"
#include "src/optimized/ops/sparse_mla.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

// Of the gradients that queries give to their keys before these are added up. At the released sizes
// it holds more than a hundred queries, two blocks each.
constexpr int64_t kWorkspaceBytes = int64_t{1} << 30;

auto forward_on(const at::Tensor& q) {
  return [&q](const auto& params) {
    const DeviceScope device(q);
    launch_sparse_mla(params, device.stream());
  };
}

/// dkv in the order of queries, with the workspace for it.
template <typename T>
void run_in_order(SparseMlaBackwardParams<T> params, const at::Tensor& dkv, Stream stream) {
  const MlaShape& shape = params.shape;
  const int64_t tiles = mla_head_tiles<T>(shape.heads);
  const int64_t per_query = std::max<int64_t>(tiles * params.lists.slots * shape.width, 1);
  const int64_t most = std::max<int64_t>(kWorkspaceBytes / 4 / per_query, 1);
  params.chunk = std::clamp<int64_t>(shape.queries, 1, most);
  const auto floats = dkv.options().dtype(at::kFloat);
  const at::Tensor sum = at::empty_like(dkv, floats);
  // One element more: a pointer that is not null, also without slots.
  const at::Tensor contributions = at::empty({params.chunk * per_query + 1}, floats);
  const at::Tensor slot_of_key = at::empty({params.chunk * shape.keys}, floats.dtype(at::kInt));
  params.dkv_sum = mutable_pointer<float>(sum);
  params.contributions = mutable_pointer<float>(contributions);
  params.slot_of_key = mutable_pointer<int32_t>(slot_of_key);
  launch_sparse_mla_backward(params, stream);
}

template <typename T>
void run_with_atomics(SparseMlaBackwardParams<T> params, at::Tensor dkv, Stream stream) {
  const at::Tensor sum = at::zeros_like(dkv, dkv.options().dtype(at::kFloat));
  params.dkv_sum = mutable_pointer<float>(sum);
  params.chunk = std::max<int64_t>(params.shape.queries, 1);
  launch_sparse_mla_backward(params, stream);
  dkv.copy_(sum);
}

auto backward_on(const at::Tensor& q, bool deterministic) {
  return [&q, deterministic](const auto& params, const at::Tensor& dkv) {
    const DeviceScope device(q);
    if (deterministic) {
      run_in_order(params, dkv, device.stream());
    } else {
      run_with_atomics(params, dkv, device.stream());
    }
  };
}

Pair sparse_mla(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& topk, double scale,
                int64_t kv_lora) {
  return run_mla("sparse_mla", q, kv, {topk, /*is_dense=*/false}, scale, kv_lora, forward_on(q));
}

Pair dense_mla(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& mask,
               int64_t first_query, double scale, int64_t kv_lora) {
  return run_mla("dense_mla", q, kv, {mask, /*is_dense=*/true, first_query}, scale, kv_lora,
                 forward_on(q));
}

Pair sparse_mla_backward(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                         const at::Tensor& q, const at::Tensor& kv, const at::Tensor& topk,
                         double scale, int64_t kv_lora, bool deterministic) {
  return run_mla_backward("sparse_mla_backward", {dout, out, lse}, q, kv,
                          {topk, /*is_dense=*/false}, scale, kv_lora,
                          backward_on(q, deterministic));
}

Pair dense_mla_backward(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                        const at::Tensor& q, const at::Tensor& kv, const at::Tensor& mask,
                        int64_t first_query, double scale, int64_t kv_lora, bool deterministic) {
  return run_mla_backward("dense_mla_backward", {dout, out, lse}, q, kv,
                          {mask, /*is_dense=*/true, first_query}, scale, kv_lora,
                          backward_on(q, deterministic));
}

}  // namespace

DSV32_DEVICE_OPS(m) {
  m.impl("sparse_mla", &sparse_mla);
  m.impl("dense_mla", &dense_mla);
  m.impl("sparse_mla_backward", &sparse_mla_backward);
  m.impl("dense_mla_backward", &dense_mla_backward);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
