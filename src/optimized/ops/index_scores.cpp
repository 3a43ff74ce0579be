#include "src/optimized/ops/index_scores.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

constexpr const char* kForward = "index_scores";
constexpr const char* kBackward = "index_scores_backward";
constexpr const char* kSparseBackward = "index_scores_backward_sparse";

void expect_inputs(const char* op, const IndexInputs& in) {
  const Argument q{op, "q", in.q}, k{op, "k", in.k}, weights{op, "weights", in.weights};
  expect_real(q);
  expect_rank(q, 4);
  expect_at_most(q, -1, kIndexMaxDim);
  expect_elements(q);
  expect_like(k, q);
  expect_rank(k, 3);
  expect_shape(k, {in.q.sym_size(0), in.k.sym_size(1), in.q.sym_size(3)});
  expect_dtype(weights, at::kFloat);
  expect_device_of(weights, q);
  expect_shape(weights, in.q.sym_sizes().slice(0, 3));
}

void expect_mask(const char* op, const IndexInputs& in, const IndexKeys& keys) {
  const Argument mask{op, "mask", keys.tensor};
  expect_dtype(mask, at::kBool);
  expect_device_of(mask, {op, "q", in.q});
  expect_shape(mask, in.k.sym_sizes().slice(0, 2));
  TORCH_CHECK(keys.first_query >= 0, op, ": first_query: expected 0 or more, got ",
              keys.first_query);
}

}  // namespace

at::Tensor index_scores_output(const IndexInputs& in, const IndexKeys& keys) {
  expect_inputs(kForward, in);
  expect_mask(kForward, in, keys);
  return empty_as(in.q, {in.q.sym_size(0), in.q.sym_size(1), in.k.sym_size(1)}, at::kFloat);
}

IndexGradients index_scores_gradients(const at::Tensor& dscores, const IndexInputs& in,
                                      const IndexKeys& keys) {
  const char* op = keys.is_sparse ? kSparseBackward : kBackward;
  expect_inputs(op, in);
  const Argument q{op, "q", in.q}, slopes{op, "dscores", dscores};
  expect_dtype(slopes, at::kFloat);
  expect_device_of(slopes, q);
  const c10::SymInt batch = in.q.sym_size(0), queries = in.q.sym_size(1);
  if (keys.is_sparse) {
    const Argument topk{op, "topk", keys.tensor};
    expect_rank(slopes, 3);
    expect_shape(slopes, {batch, queries, dscores.sym_size(2)});
    expect_dtype(topk, at::kInt);
    expect_device_of(topk, q);
    expect_shape(topk, dscores.sym_sizes());
  } else {
    expect_mask(op, in, keys);
    expect_shape(slopes, {batch, queries, in.k.sym_size(1)});
  }
  const auto like = [](const at::Tensor& t) { return empty_as(t, t.sym_sizes(), t.scalar_type()); };
  return {.dq = like(in.q), .dk = like(in.k), .dweights = like(in.weights)};
}

namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

at::Tensor index_scores_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& weights,
                             const at::Tensor& mask, int64_t first_query) {
  return index_scores_output({q, k, weights}, {.tensor = mask, .first_query = first_query});
}

Gradients backward_meta(const at::Tensor& dscores, const at::Tensor& q, const at::Tensor& k,
                        const at::Tensor& weights, const at::Tensor& mask, int64_t first_query) {
  const IndexGradients out = index_scores_gradients(dscores, {q, k, weights},
                                                    {.tensor = mask, .first_query = first_query});
  return {out.dq, out.dk, out.dweights};
}

Gradients backward_sparse_meta(const at::Tensor& dscores, const at::Tensor& topk,
                               const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& weights) {
  const IndexGradients out =
      index_scores_gradients(dscores, {q, k, weights}, {.tensor = topk, .is_sparse = true});
  return {out.dq, out.dk, out.dweights};
}

void schemas(torch::Library& m) {
  m.def("index_scores(Tensor q, Tensor k, Tensor weights, Tensor mask, int first_query) -> Tensor");
  m.def(
      "index_scores_backward(Tensor dscores, Tensor q, Tensor k, Tensor weights, Tensor mask,"
      " int first_query) -> (Tensor dq, Tensor dk, Tensor dweights)");
  m.def(
      "index_scores_backward_sparse(Tensor dscores, Tensor topk, Tensor q, Tensor k,"
      " Tensor weights) -> (Tensor dq, Tensor dk, Tensor dweights)");
}

void meta(torch::Library& m) {
  m.impl(kForward, &index_scores_meta);
  m.impl(kBackward, &backward_meta);
  m.impl(kSparseBackward, &backward_sparse_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
