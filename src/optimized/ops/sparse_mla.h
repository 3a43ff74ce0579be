#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/sparse_mla.h"
#include "src/optimized/ops/arguments.h"
#include "src/optimized/ops/indices.h"

/// This header leads from tensors to Params, in the same way for every kernel of sparse_mla and
/// dense_mla.
namespace dsv32::optimized {

/// The tensors that say which keys each query sees, as they were given.
struct MlaKeys {
  const at::Tensor& tensor;  // topk [B,S,K] int32, or mask [B,T] bool
  bool is_dense;
  int64_t first_query = 0;
};

/// Checks the arguments; returns out [B,S,H,kv_lora] as q and lse [B,S,H] float32, not filled.
std::tuple<at::Tensor, at::Tensor> mla_outputs(const char* op, const at::Tensor& q,
                                               const at::Tensor& kv, const MlaKeys& keys,
                                               int64_t kv_lora);

struct MlaForward {
  const at::Tensor& dout;
  const at::Tensor& out;
  const at::Tensor& lse;
};

/// Checks the arguments; returns dq as q and dkv as kv, not filled.
std::tuple<at::Tensor, at::Tensor> mla_gradients(const char* op, const MlaForward& forward,
                                                 const at::Tensor& q, const at::Tensor& kv,
                                                 const MlaKeys& keys, int64_t kv_lora);

inline MlaShape mla_shape(const at::Tensor& q, const at::Tensor& kv, int64_t kv_lora) {
  return {.batch = q.size(0),
          .queries = q.size(1),
          .keys = kv.size(1),
          .heads = q.size(2),
          .kv_lora = kv_lora,
          .width = q.size(3)};
}

/// `rows` is the contiguous form of keys.tensor.
inline KeyLists key_lists(const MlaKeys& keys, const at::Tensor& rows, int64_t key_count) {
  return {.is_dense = keys.is_dense,
          .topk = keys.is_dense ? nullptr : pointer<int32_t>(rows),
          .mask = keys.is_dense ? pointer<bool>(rows) : nullptr,
          .slots = keys.is_dense ? key_count : rows.size(2),
          .first_query = keys.first_query};
}

/// `run(params)` takes SparseMlaParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_mla(const char* op, const at::Tensor& q,
                                           const at::Tensor& kv, const MlaKeys& keys, double scale,
                                           int64_t kv_lora, Run run) {
  auto [out, lse] = mla_outputs(op, q, kv, keys, kv_lora);
  if (!keys.is_dense) expect_indices({op, "topk", keys.tensor}, kv.size(1), -1);
  const at::Tensor q_rows = q.contiguous(), kv_rows = kv.contiguous();
  const at::Tensor key_rows = keys.tensor.contiguous();
  dispatch_real({op, "q", q}, [&](auto type) {
    using T = decltype(type);
    run(SparseMlaParams<T>{.q = pointer<T>(q_rows),
                           .kv = pointer<T>(kv_rows),
                           .out = mutable_pointer<T>(out),
                           .lse = mutable_pointer<float>(lse),
                           .lists = key_lists(keys, key_rows, kv.size(1)),
                           .shape = mla_shape(q, kv, kv_lora),
                           .scale = static_cast<float>(scale)});
  });
  return {out, lse};
}

/// `run(params, dkv)` takes SparseMlaBackwardParams<float> and <bf16> without workspace.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_mla_backward(const char* op, const MlaForward& forward,
                                                    const at::Tensor& q, const at::Tensor& kv,
                                                    const MlaKeys& keys, double scale,
                                                    int64_t kv_lora, Run run) {
  auto [dq, dkv] = mla_gradients(op, forward, q, kv, keys, kv_lora);
  if (!keys.is_dense) expect_indices({op, "topk", keys.tensor}, kv.size(1), -1);
  const at::Tensor q_rows = q.contiguous(), kv_rows = kv.contiguous();
  const at::Tensor key_rows = keys.tensor.contiguous(), lse = forward.lse.contiguous();
  const at::Tensor dout = forward.dout.contiguous(), out = forward.out.contiguous();
  if (q.numel() == 0) dkv.zero_();
  dispatch_real({op, "q", q}, [&, &dq = dq, &dkv = dkv](auto type) {
    using T = decltype(type);
    run(SparseMlaBackwardParams<T>{.dout = pointer<T>(dout),
                                   .out = pointer<T>(out),
                                   .lse = pointer<float>(lse),
                                   .q = pointer<T>(q_rows),
                                   .kv = pointer<T>(kv_rows),
                                   .dq = mutable_pointer<T>(dq),
                                   .dkv = mutable_pointer<T>(dkv),
                                   .dkv_sum = nullptr,
                                   .contributions = nullptr,
                                   .slot_of_key = nullptr,
                                   .chunk = q.size(1),
                                   .lists = key_lists(keys, key_rows, kv.size(1)),
                                   .shape = mla_shape(q, kv, kv_lora),
                                   .scale = static_cast<float>(scale)},
        dkv);
  });
  return {dq, dkv};
}

}  // namespace dsv32::optimized
