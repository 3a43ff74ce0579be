#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// hadamard: y = scale H x over rows, H the symmetric Hadamard matrix in natural (Sylvester) order;
/// rows of a power of two up to 256 (docs/spec.md 1.5). H is symmetric: the backward pass is the op
/// itself.
namespace dsv32::optimized {

enum class HadamardMutant {
  none,
  missing_stage,  // the widest butterfly is left out
  wrong_sign,     // the difference is taken the other way round between lanes
  no_scale,
  dropped_row,  // the last row is not written
};

constexpr int64_t kHadamardMaxWidth = 256;

/// T: float or bf16. Arithmetic is float32.
template <typename T>
struct HadamardParams {
  const T* x;  // [rows, width]
  T* y;        // [rows, width]
  int64_t rows;
  int64_t width;  // a power of two
  float scale;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_hadamard(const HadamardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
