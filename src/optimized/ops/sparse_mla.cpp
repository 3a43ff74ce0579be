#include "src/optimized/ops/sparse_mla.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

/// Checks what forward and backward share.
void expect_attention(const char* op, const at::Tensor& q, const at::Tensor& kv,
                      const MlaKeys& keys, int64_t kv_lora) {
  const Argument source{op, "q", q};
  expect_real(source);
  expect_rank(source, 4);
  expect_rank({op, "kv", kv}, 3);
  expect_like({op, "kv", kv}, source);
  expect_shape({op, "kv", kv}, {q.sym_size(0), kv.sym_size(1), q.sym_size(3)});
  expect_at_most(source, -1, kMaxMlaWidth);
  TORCH_CHECK(kv_lora >= 1 && q.sym_size(3) >= kv_lora, op, ": kv_lora: expected 1 to ",
              q.sym_size(3), ", got ", kv_lora);
  if (keys.is_dense) {
    const Argument mask{op, "mask", keys.tensor};
    expect_dtype(mask, at::kBool);
    expect_device_of(mask, source);
    expect_shape(mask, {q.sym_size(0), kv.sym_size(1)});
    TORCH_CHECK(keys.first_query >= 0, op, ": first_query: expected 0 or more, got ",
                keys.first_query);
    return;
  }
  const Argument topk{op, "topk", keys.tensor};
  expect_dtype(topk, at::kInt);
  expect_device_of(topk, source);
  expect_rank(topk, 3);
  expect_shape(topk, {q.sym_size(0), q.sym_size(1), keys.tensor.sym_size(2)});
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> mla_outputs(const char* op, const at::Tensor& q,
                                               const at::Tensor& kv, const MlaKeys& keys,
                                               int64_t kv_lora) {
  expect_attention(op, q, kv, keys, kv_lora);
  const c10::SymInt b = q.sym_size(0), s = q.sym_size(1), h = q.sym_size(2);
  return {empty_as(q, {b, s, h, kv_lora}, q.scalar_type()), empty_as(q, {b, s, h}, at::kFloat)};
}

std::tuple<at::Tensor, at::Tensor> mla_gradients(const char* op, const MlaForward& forward,
                                                 const at::Tensor& q, const at::Tensor& kv,
                                                 const MlaKeys& keys, int64_t kv_lora) {
  expect_attention(op, q, kv, keys, kv_lora);
  const c10::SymInt b = q.sym_size(0), s = q.sym_size(1), h = q.sym_size(2);
  const Argument source{op, "q", q};
  expect_like({op, "dout", forward.dout}, source);
  expect_shape({op, "dout", forward.dout}, {b, s, h, kv_lora});
  expect_like({op, "out", forward.out}, source);
  expect_shape({op, "out", forward.out}, {b, s, h, kv_lora});
  expect_dtype({op, "lse", forward.lse}, at::kFloat);
  expect_device_of({op, "lse", forward.lse}, source);
  expect_shape({op, "lse", forward.lse}, {b, s, h});
  return {empty_as(q, q.sym_sizes(), q.scalar_type()),
          empty_as(kv, kv.sym_sizes(), kv.scalar_type())};
}

namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

Pair sparse_mla_meta(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& topk, double,
                     int64_t kv_lora) {
  return mla_outputs("sparse_mla", q, kv, {topk, /*is_dense=*/false}, kv_lora);
}

Pair dense_mla_meta(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& mask,
                    int64_t first_query, double, int64_t kv_lora) {
  return mla_outputs("dense_mla", q, kv, {mask, /*is_dense=*/true, first_query}, kv_lora);
}

Pair sparse_mla_backward_meta(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& q, const at::Tensor& kv, const at::Tensor& topk,
                              double, int64_t kv_lora, bool) {
  return mla_gradients("sparse_mla_backward", {dout, out, lse}, q, kv, {topk, /*is_dense=*/false},
                       kv_lora);
}

Pair dense_mla_backward_meta(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                             const at::Tensor& q, const at::Tensor& kv, const at::Tensor& mask,
                             int64_t first_query, double, int64_t kv_lora, bool) {
  return mla_gradients("dense_mla_backward", {dout, out, lse}, q, kv,
                       {mask, /*is_dense=*/true, first_query}, kv_lora);
}

void schemas(torch::Library& m) {
  m.def(
      "sparse_mla(Tensor q, Tensor kv, Tensor topk, float scale, int kv_lora)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "dense_mla(Tensor q, Tensor kv, Tensor mask, int first_query, float scale, int kv_lora)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "sparse_mla_backward(Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor topk,"
      " float scale, int kv_lora, bool deterministic=True) -> (Tensor dq, Tensor dkv)");
  m.def(
      "dense_mla_backward(Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor mask,"
      " int first_query, float scale, int kv_lora, bool deterministic=True)"
      " -> (Tensor dq, Tensor dkv)");
}

void meta(torch::Library& m) {
  m.impl("sparse_mla", &sparse_mla_meta);
  m.impl("dense_mla", &dense_mla_meta);
  m.impl("sparse_mla_backward", &sparse_mla_backward_meta);
  m.impl("dense_mla_backward", &dense_mla_backward_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
