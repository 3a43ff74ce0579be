#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// kl_sparse, kl_dense: the indexer's KL(target || student) of every query (docs/spec.md 2, Eq. 3
/// and 4). The target is rebuilt from the log-sum-exp of the attention, so that no [B,H,S,T] is
/// made.
namespace dsv32::optimized {

enum class KlMutant {
  none,
  unscaled,         // logits without the softmax scale
  dropped_head,     // the last head is left out
  dropped_step,     // a product leaves out its last columns
  missing_barrier,  // halves of the head sum are added before both are there
  not_normalised,   // target sums to the number of heads
  hidden_diagonal,  // a query does not see its own key
  shifted_student,  // the student's softmax runs over one place less
};

struct KlSizes {
  int64_t batch;    // B
  int64_t queries;  // S
  int64_t keys;     // T
  int64_t heads;    // H
  int64_t width;    // R + P
  int64_t places;   // K of topk, T in the dense form
};

/// T: float or bf16. Per query, over its keys: mass = sum_h exp(scale q_h . kv - lse_h),
/// target = mass / sum(mass), student = softmax(scores), rows = sum target (log target - log
/// student), dscores = student - target. A place without a key gets zeros, as does a query without
/// keys. Deterministic.
template <typename T>
struct KlParams {
  const T* q;           // [B,S,H,R+P]
  const T* kv;          // [B,T,R+P]
  const float* lse;     // [B,S,H]
  const float* scores;  // [B,S,T]
  const int32_t* topk;  // [B,S,K] distinct keys, -1: none; null: every visible key
  const bool* mask;     // [B,T]; null with topk
  float* target;        // [B,S,places]
  float* student;       // [B,S,places]
  float* rows;          // [B,S]
  float* dscores;       // [B,S,places]
  KlSizes sizes;
  int64_t first_query;
  float scale;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_kl(const KlParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
