#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/kl.h"
#include "src/optimized/ops/arguments.h"
#include "src/optimized/ops/indices.h"

/// This header leads from tensors to Params, in the same way for every kernel of kl_sparse and
/// kl_dense.
namespace dsv32::optimized {

struct KlInputs {
  const at::Tensor& q;       // [B,S,H,R+P] float32 or bfloat16
  const at::Tensor& kv;      // [B,T,R+P] as q
  const at::Tensor& lse;     // [B,S,H] float32
  const at::Tensor& scores;  // [B,S,T] float32
};

/// The keys of every query.
struct KlKeys {
  const at::Tensor& tensor;  // topk [B,S,K] int32, or mask [B,T] bool
  bool is_sparse;
  int64_t first_query = 0;
};

struct KlOutputs {
  at::Tensor target;   // [B,S,K] or [B,S,T] float32
  at::Tensor student;  // as target
  at::Tensor rows;     // [B,S] float32
  at::Tensor dscores;  // as target

  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> all() const {
    return {target, student, rows, dscores};
  }
};

/// Checks the arguments; the results are not filled.
KlOutputs kl_outputs(const char* op, const KlInputs& in, const KlKeys& keys);

/// `run(params)` takes KlParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> run_kl(const char* op,
                                                                  const KlInputs& in,
                                                                  const KlKeys& keys, double scale,
                                                                  Run run) {
  const KlOutputs out = kl_outputs(op, in, keys);
  if (keys.is_sparse) expect_indices({op, "topk", keys.tensor}, in.kv.size(1), -1);
  const at::Tensor q = in.q.contiguous(), kv = in.kv.contiguous(), lse = in.lse.contiguous();
  const at::Tensor scores = in.scores.contiguous(), key_rows = keys.tensor.contiguous();
  dispatch_real({op, "q", q}, [&](auto type) {
    using T = decltype(type);
    run(KlParams<T>{.q = pointer<T>(q),
                    .kv = pointer<T>(kv),
                    .lse = pointer<float>(lse),
                    .scores = pointer<float>(scores),
                    .topk = keys.is_sparse ? pointer<int32_t>(key_rows) : nullptr,
                    .mask = keys.is_sparse ? nullptr : pointer<bool>(key_rows),
                    .target = mutable_pointer<float>(out.target),
                    .student = mutable_pointer<float>(out.student),
                    .rows = mutable_pointer<float>(out.rows),
                    .dscores = mutable_pointer<float>(out.dscores),
                    .sizes = {.batch = q.size(0),
                              .queries = q.size(1),
                              .keys = kv.size(1),
                              .heads = q.size(2),
                              .width = q.size(3),
                              .places = out.target.size(2)},
                    .first_query = keys.first_query,
                    .scale = static_cast<float>(scale)});
  });
  return out.all();
}

}  // namespace dsv32::optimized
