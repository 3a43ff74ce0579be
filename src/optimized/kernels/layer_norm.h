#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// layer_norm: y = (x - mean) / sqrt(variance + eps) * weight + bias over rows (docs/spec.md 1.5),
/// forward and backward.
namespace dsv32::optimized {

enum class LayerNormMutant {
  none,
  wrong_tail,         // the last element of a row is not counted in the mean
  unbiased_variance,  // divides by width - 1
  variance_of_raw,    // mean(x^2) - mean^2, which cancels
  no_bias,
  dropped_partial,  // the last partial sum of dweight and dbias is left out
  stale_sums,       // shared sums start with what lies there
};

/// T: float or bf16. Sums are float32.
template <typename T>
struct LayerNormParams {
  const T* x;       // [rows, width]
  const T* weight;  // [width]
  const T* bias;    // [width]
  T* y;             // [rows, width]
  float* mean;      // [rows]
  float* rstd;      // [rows] 1 / sqrt(variance + eps)
  int64_t rows;
  int64_t width;
  float eps;
};

/// With n = (x - mean) rstd and g = dy weight, per row: dx = rstd (g - mean(g) - n mean(g n)),
/// dweight = sum over rows of dy n, dbias = sum over rows of dy. Deterministic: partial sums per
/// block, added in order.
template <typename T>
struct LayerNormBackwardParams {
  const T* dy;             // [rows, width]
  const T* x;              // [rows, width]
  const T* weight;         // [width]
  const float* mean;       // [rows]
  const float* rstd;       // [rows]
  T* dx;                   // [rows, width]
  float* dweight;          // [width]
  float* dbias;            // [width]
  float* dweight_partial;  // [layer_norm_partials(rows), width] workspace
  float* dbias_partial;    // [layer_norm_partials(rows), width] workspace
  int64_t rows;
  int64_t width;
};

/// Number of partial sums: a function of the shape alone, so that the bits are too.
inline int64_t layer_norm_partials(int64_t rows) {
  constexpr int64_t kBlocks = 264;  // two per multiprocessor of an H200
  return rows < kBlocks ? rows : kBlocks;
}

/// The backward kernel keeps two rows of float32 sums in shared memory.
constexpr int64_t kLayerNormMaxWidth = 16384;

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_layer_norm(const LayerNormParams<T>& params, Stream stream);

template <typename T>
void launch_layer_norm_backward(const LayerNormBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
