#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/masked_mha.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

struct MhaInputs {
  const at::Tensor& q;        // [B,S,H,nope+rope]
  const at::Tensor& k_nope;   // [B,T,H,nope]
  const at::Tensor& k_rope;   // [B,T,rope]
  const at::Tensor& v;        // [B,T,H,V]
  const at::Tensor& support;  // [B,S,ceil(T/32)] int32
};

struct MhaForward {
  const at::Tensor& dout;
  const at::Tensor& out;
  const at::Tensor& lse;
};

/// Checks the arguments; returns out [B,S,H,V] as q and lse [B,S,H] float32, not filled.
std::tuple<at::Tensor, at::Tensor> masked_mha_outputs(const MhaInputs& in);

using MhaGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// Checks the arguments; returns dq, dk_nope, dk_rope, dv as their inputs, not filled.
MhaGradients masked_mha_gradients(const MhaForward& forward, const MhaInputs& in);

inline MhaShape mha_shape(const MhaInputs& in) {
  return {.batch = in.q.size(0),
          .queries = in.q.size(1),
          .keys = in.v.size(1),
          .heads = in.q.size(2),
          .nope = in.k_nope.size(3),
          .rope = in.k_rope.size(2),
          .value = in.v.size(3)};
}

/// `run(params)` takes MaskedMhaParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_masked_mha(const MhaInputs& in, double scale, Run run) {
  auto [out, lse] = masked_mha_outputs(in);
  const at::Tensor q = in.q.contiguous(), k_nope = in.k_nope.contiguous();
  const at::Tensor k_rope = in.k_rope.contiguous(), v = in.v.contiguous();
  const at::Tensor support = in.support.contiguous();
  dispatch_real({"masked_mha", "q", q}, [&, &out = out, &lse = lse](auto type) {
    using T = decltype(type);
    run(MaskedMhaParams<T>{.q = pointer<T>(q),
                           .k_nope = pointer<T>(k_nope),
                           .k_rope = pointer<T>(k_rope),
                           .v = pointer<T>(v),
                           .support = pointer<int32_t>(support),
                           .out = mutable_pointer<T>(out),
                           .lse = mutable_pointer<float>(lse),
                           .shape = mha_shape(in),
                           .scale = static_cast<float>(scale)});
  });
  return {out, lse};
}

/// `run(params)` takes MaskedMhaBackwardParams<float> and <bf16>.
template <typename Run>
MhaGradients run_masked_mha_backward(const MhaForward& forward, const MhaInputs& in, double scale,
                                     Run run) {
  MhaGradients gradients = masked_mha_gradients(forward, in);
  const at::Tensor dout = forward.dout.contiguous(), out = forward.out.contiguous();
  const at::Tensor lse = forward.lse.contiguous(), support = in.support.contiguous();
  const at::Tensor q = in.q.contiguous(), k_nope = in.k_nope.contiguous();
  const at::Tensor k_rope = in.k_rope.contiguous(), v = in.v.contiguous();
  const MhaShape shape = mha_shape(in);
  const at::Tensor delta = at::empty_like(lse);
  const at::Tensor dk_rope_heads =
      at::empty({shape.batch, shape.keys, shape.heads, shape.rope}, lse.options());
  if (shape.heads == 0) std::get<2>(gradients).zero_();
  dispatch_real({"masked_mha_backward", "q", q}, [&](auto type) {
    using T = decltype(type);
    run(MaskedMhaBackwardParams<T>{.dout = pointer<T>(dout),
                                   .out = pointer<T>(out),
                                   .lse = pointer<float>(lse),
                                   .q = pointer<T>(q),
                                   .k_nope = pointer<T>(k_nope),
                                   .k_rope = pointer<T>(k_rope),
                                   .v = pointer<T>(v),
                                   .support = pointer<int32_t>(support),
                                   .dq = mutable_pointer<T>(std::get<0>(gradients)),
                                   .dk_nope = mutable_pointer<T>(std::get<1>(gradients)),
                                   .dk_rope = mutable_pointer<T>(std::get<2>(gradients)),
                                   .dv = mutable_pointer<T>(std::get<3>(gradients)),
                                   .delta = mutable_pointer<float>(delta),
                                   .dk_rope_heads = mutable_pointer<float>(dk_rope_heads),
                                   .shape = shape,
                                   .scale = static_cast<float>(scale)});
  });
  return gradients;
}

}  // namespace dsv32::optimized
