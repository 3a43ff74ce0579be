#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// rms_norm: y = x / sqrt(mean(x^2) + eps) * weight over rows (docs/spec.md 1.2), forward and
/// backward.
namespace dsv32::optimized {

enum class RmsNormMutant {
  none,
  wrong_tail,       // the last element of a row is not counted
  wrong_scale,      // mean over the block's threads, not over the row
  rounded_sum,      // the norm reads the rounded residual sum
  dropped_partial,  // the last partial sum of dweight is left out
  stale_dweight,    // shared sums start with what lies there
  atomic_dweight,   // dweight added in the order in which blocks come
};

/// T: float or bf16. Sums are float32.
template <typename T>
struct RmsNormParams {
  const T* x;         // [rows, width]
  const T* residual;  // [rows, width], added to x before the norm; null: none
  const T* weight;    // [width]
  T* y;               // [rows, width]
  T* sum;             // [rows, width] x + residual, rounded; null without residual
  float* rstd;        // [rows] 1 / sqrt(mean(x^2) + eps)
  int64_t rows;
  int64_t width;
  float eps;
};

/// With n = x rstd and g = dy weight, per row: dx = rstd (g - n mean(g n)) + dsum,
/// dweight = sum over rows of dy n. Deterministic: partial sums per block, added in order.
template <typename T>
struct RmsNormBackwardParams {
  const T* dy;             // [rows, width]
  const T* x;              // [rows, width] what was normalised
  const T* weight;         // [width]
  const float* rstd;       // [rows]
  const T* dsum;           // [rows, width] the gradient that reaches x past the norm; null: none
  T* dx;                   // [rows, width]
  float* dweight;          // [width]
  float* dweight_partial;  // [rms_norm_partials(rows), width] workspace
  int64_t rows;
  int64_t width;
};

/// Number of partial sums of dweight: a function of the shape alone, so that the bits are too.
inline int64_t rms_norm_partials(int64_t rows) {
  constexpr int64_t kBlocks = 264;  // two per multiprocessor of an H200
  return rows < kBlocks ? rows : kBlocks;
}

/// The backward kernel keeps a row of float32 sums in shared memory.
constexpr int64_t kRmsNormMaxWidth = 32768;

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_rms_norm(const RmsNormParams<T>& params, Stream stream);

template <typename T>
void launch_rms_norm_backward(const RmsNormBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
