#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "src/optimized/kernels/adamw.h"
#include "src/optimized/ops/arguments.h"

/// This header holds checks and tables of adamw_ and grad_norm, the same for every kernel.
namespace dsv32::optimized {

/// The tensors of one step; the i-th of each list belong together.
struct AdamwArguments {
  at::TensorList parameters;  // float32, contiguous
  at::TensorList gradients;   // float32 or bf16, all alike
  at::TensorList exp_avg;     // float32, contiguous
  at::TensorList exp_avg_sq;  // float32, contiguous
  at::Tensor clip_scale;      // [] float32
};

struct AdamwOptions {
  int64_t step;  // of this update, from 1
  double lr, beta1, beta2, eps, weight_decay;
};

void expect_adamw(const AdamwArguments& arguments, const AdamwOptions& options);
/// Checks the arguments; returns norm [] float64, not filled.
at::Tensor grad_norm_output(at::TensorList gradients);

AdamwFactors adamw_factors(const AdamwOptions& options);

/// Contiguous gradients, kept alive.
std::vector<at::Tensor> contiguous_each(at::TensorList tensors);

/// Total number of chunks and a row per tensor that is not empty.
template <typename Row>
struct ChunkTable {
  std::vector<Row> rows;
  int64_t chunks = 0;
};

template <typename G>
ChunkTable<AdamwTensor<G>> adamw_table(const AdamwArguments& a,
                                       const std::vector<at::Tensor>& gradients) {
  ChunkTable<AdamwTensor<G>> table;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const int64_t count = gradients[i].numel();
    if (count == 0) continue;
    table.rows.push_back({.parameter = mutable_pointer<float>(a.parameters[i]),
                          .gradient = pointer<G>(gradients[i]),
                          .exp_avg = mutable_pointer<float>(a.exp_avg[i]),
                          .exp_avg_sq = mutable_pointer<float>(a.exp_avg_sq[i]),
                          .count = count,
                          .first_chunk = table.chunks});
    table.chunks += adamw_chunks(count);
  }
  return table;
}

template <typename G>
ChunkTable<GradNormTensor<G>> grad_norm_table(const std::vector<at::Tensor>& gradients) {
  ChunkTable<GradNormTensor<G>> table;
  for (const at::Tensor& gradient : gradients) {
    if (gradient.numel() == 0) continue;
    table.rows.push_back(
        {.gradient = pointer<G>(gradient), .count = gradient.numel(), .first_chunk = table.chunks});
    table.chunks += adamw_chunks(gradient.numel());
  }
  return table;
}

}  // namespace dsv32::optimized
