#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// adamw_: one step of AdamW over many tensors in one launch, arithmetic as torch.optim.AdamW.
/// grad_norm: the root of the sum of squares of many tensors, in float64 and a fixed order.
namespace dsv32::optimized {

enum class AdamwMutant {
  none,
  wrong_tail,       // the last element of a tensor is not updated
  dropped_chunk,    // the last chunk is left out
  unclipped,        // the clip scale is not applied
  coupled_decay,    // weight decay goes through the gradient, as in Adam
  uncorrected,      // the second moment's bias is not corrected
  missing_barrier,  // parts of the norm are added before all are there
};

/// Elements that one block takes.
constexpr int64_t kAdamwChunk = 8192;

inline int64_t adamw_chunks(int64_t count) { return (count + kAdamwChunk - 1) / kAdamwChunk; }

/// One parameter tensor. G: dtype of the gradient, float or bf16.
template <typename G>
struct AdamwTensor {
  float* parameter;   // [count] master
  const G* gradient;  // [count]
  float* exp_avg;     // [count]
  float* exp_avg_sq;  // [count]
  int64_t count;
  int64_t first_chunk;  // chunks of the tensors before
};

/// The step's factors; rounded to float32 once.
struct AdamwFactors {
  float decay;         // 1 - lr weight_decay
  float weight_decay;  // read by a mutant alone
  float beta1_rest;    // 1 - beta1
  float beta2;
  float beta2_rest;  // 1 - beta2
  float step_size;   // lr / (1 - beta1^step)
  float root;        // sqrt(1 - beta2^step)
  float eps;
};

/// g = clip gradient; exp_avg += (1 - beta1) (g - exp_avg); exp_avg_sq = beta2 exp_avg_sq +
/// (1 - beta2) g^2; parameter = parameter decay - step_size exp_avg / (sqrt(exp_avg_sq) / root +
/// eps).
template <typename G>
struct AdamwParams {
  const AdamwTensor<G>* tensors;  // [tensor_count], none empty
  const float* clip_scale;        // [1]
  int64_t tensor_count;
  int64_t chunks;
  AdamwFactors factors;
};

template <typename G>
struct GradNormTensor {
  const G* gradient;  // [count]
  int64_t count;
  int64_t first_chunk;
};

template <typename G>
struct GradNormParams {
  const GradNormTensor<G>* tensors;  // [tensor_count], none empty
  double* partial;                   // [chunks] workspace
  double* norm;                      // [1]
  int64_t tensor_count;
  int64_t chunks;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename G>
void launch_adamw(const AdamwParams<G>& params, Stream stream);
template <typename G>
void launch_grad_norm(const GradNormParams<G>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
