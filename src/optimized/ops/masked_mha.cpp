#include "src/optimized/ops/masked_mha.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

/// Checks what forward and backward share.
void expect_attention(const char* op, const MhaInputs& in) {
  const Argument q{op, "q", in.q}, k_nope{op, "k_nope", in.k_nope}, v{op, "v", in.v};
  const Argument k_rope{op, "k_rope", in.k_rope}, support{op, "support", in.support};
  expect_real(q);
  for (const Argument& argument : {q, k_nope, v}) expect_rank(argument, 4);
  expect_rank(k_rope, 3);
  for (const Argument& argument : {k_nope, k_rope, v}) {
    expect_like(argument, q);
    expect_elements(argument);
  }
  const c10::SymInt b = in.q.sym_size(0), s = in.q.sym_size(1), h = in.q.sym_size(2);
  const c10::SymInt t = in.v.sym_size(1);
  expect_shape(v, {b, t, h, in.v.sym_size(3)});
  expect_shape(k_nope, {b, t, h, in.k_nope.sym_size(3)});
  expect_shape(k_rope, {b, t, in.k_rope.sym_size(2)});
  expect_shape(q, {b, s, h, in.k_nope.sym_size(3) + in.k_rope.sym_size(2)});
  expect_at_most(q, -1, kMaxMhaWidth);
  expect_at_most(v, -1, kMaxMhaWidth);
  expect_dtype(support, at::kInt);
  expect_device_of(support, q);
  expect_shape(support, {b, s, (t + 31) / 32});
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> masked_mha_outputs(const MhaInputs& in) {
  expect_attention("masked_mha", in);
  const c10::SymInt b = in.q.sym_size(0), s = in.q.sym_size(1), h = in.q.sym_size(2);
  return {empty_as(in.q, {b, s, h, in.v.sym_size(3)}, in.q.scalar_type()),
          empty_as(in.q, {b, s, h}, at::kFloat)};
}

MhaGradients masked_mha_gradients(const MhaForward& forward, const MhaInputs& in) {
  constexpr const char* op = "masked_mha_backward";
  expect_attention(op, in);
  const c10::SymInt b = in.q.sym_size(0), s = in.q.sym_size(1), h = in.q.sym_size(2);
  const Argument q{op, "q", in.q};
  const Argument dout{op, "dout", forward.dout}, out{op, "out", forward.out};
  for (const Argument& argument : {dout, out}) {
    expect_like(argument, q);
    expect_shape(argument, {b, s, h, in.v.sym_size(3)});
  }
  const Argument lse{op, "lse", forward.lse};
  expect_dtype(lse, at::kFloat);
  expect_device_of(lse, q);
  expect_shape(lse, {b, s, h});
  const auto same = [](const at::Tensor& x) { return empty_as(x, x.sym_sizes(), x.scalar_type()); };
  return {same(in.q), same(in.k_nope), same(in.k_rope), same(in.v)};
}

namespace {

std::tuple<at::Tensor, at::Tensor> masked_mha_meta(const at::Tensor& q, const at::Tensor& k_nope,
                                                   const at::Tensor& k_rope, const at::Tensor& v,
                                                   const at::Tensor& support, double) {
  return masked_mha_outputs({q, k_nope, k_rope, v, support});
}

MhaGradients masked_mha_backward_meta(const at::Tensor& dout, const at::Tensor& out,
                                      const at::Tensor& lse, const at::Tensor& q,
                                      const at::Tensor& k_nope, const at::Tensor& k_rope,
                                      const at::Tensor& v, const at::Tensor& support, double) {
  return masked_mha_gradients({dout, out, lse}, {q, k_nope, k_rope, v, support});
}

void schemas(torch::Library& m) {
  m.def(
      "masked_mha(Tensor q, Tensor k_nope, Tensor k_rope, Tensor v, Tensor support, float scale)"
      " -> (Tensor out, Tensor lse)");
  m.def(
      "masked_mha_backward(Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k_nope,"
      " Tensor k_rope, Tensor v, Tensor support, float scale)"
      " -> (Tensor dq, Tensor dk_nope, Tensor dk_rope, Tensor dv)");
}

void meta(torch::Library& m) {
  m.impl("masked_mha", &masked_mha_meta);
  m.impl("masked_mha_backward", &masked_mha_backward_meta);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
