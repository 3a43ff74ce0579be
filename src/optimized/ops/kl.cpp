#include "src/optimized/ops/kl.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

KlOutputs kl_outputs(const char* op, const KlInputs& in, const KlKeys& keys) {
  const Argument q{op, "q", in.q}, kv{op, "kv", in.kv}, lse{op, "lse", in.lse};
  const Argument scores{op, "scores", in.scores};
  expect_real(q);
  expect_rank(q, 4);
  expect_elements(q);
  const c10::SymInt batch = in.q.sym_size(0), queries = in.q.sym_size(1);
  expect_like(kv, q);
  expect_rank(kv, 3);
  expect_shape(kv, {batch, in.kv.sym_size(1), in.q.sym_size(3)});
  expect_dtype(lse, at::kFloat);
  expect_device_of(lse, q);
  expect_shape(lse, {batch, queries, in.q.sym_size(2)});
  expect_dtype(scores, at::kFloat);
  expect_device_of(scores, q);
  expect_shape(scores, {batch, queries, in.kv.sym_size(1)});
  const Argument chosen{op, keys.is_sparse ? "topk" : "mask", keys.tensor};
  expect_dtype(chosen, keys.is_sparse ? at::kInt : at::kBool);
  expect_device_of(chosen, q);
  c10::SymInt places = in.kv.sym_size(1);
  if (keys.is_sparse) {
    expect_rank(chosen, 3);
    places = keys.tensor.sym_size(2);
    expect_shape(chosen, {batch, queries, places});
  } else {
    expect_shape(chosen, {batch, places});
    TORCH_CHECK(keys.first_query >= 0, op, ": first_query: expected 0 or more, got ",
                keys.first_query);
  }
  const auto per_place = [&] { return empty_as(in.q, {batch, queries, places}, at::kFloat); };
  return {.target = per_place(),
          .student = per_place(),
          .rows = empty_as(in.q, {batch, queries}, at::kFloat),
          .dscores = per_place()};
}

namespace {

using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Four kl_sparse_meta(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& lse,
                    const at::Tensor& scores, const at::Tensor& topk, double) {
  return kl_outputs("kl_sparse", {q, kv, lse, scores}, {.tensor = topk, .is_sparse = true}).all();
}

Four kl_dense_meta(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& lse,
                   const at::Tensor& scores, const at::Tensor& mask, int64_t first_query, double) {
  const KlKeys keys{.tensor = mask, .is_sparse = false, .first_query = first_query};
  return kl_outputs("kl_dense", {q, kv, lse, scores}, keys).all();
}

void schemas(torch::Library& m) {
  m.def(
      "kl_sparse(Tensor q, Tensor kv, Tensor lse, Tensor scores, Tensor topk, float scale)"
      " -> (Tensor target, Tensor student, Tensor rows, Tensor dscores)");
  m.def(
      "kl_dense(Tensor q, Tensor kv, Tensor lse, Tensor scores, Tensor mask, int first_query,"
      " float scale) -> (Tensor target, Tensor student, Tensor rows, Tensor dscores)");
}

void meta(torch::Library& m) {
  m.impl("kl_sparse", &kl_sparse_meta);
  m.impl("kl_dense", &kl_dense_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
