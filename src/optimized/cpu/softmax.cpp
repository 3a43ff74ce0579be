#include "src/optimized/cpu/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/exp.h"
#include "src/optimized/cpu/rows.h"

namespace dsv32::optimized::cpu {
DSV32_CLONES float maximum(const float* x, int64_t n) {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < n; ++i) top = std::max(top, x[i]);
  return top;
}

DSV32_CLONES void exp_minus(const float* x, float shift, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = exp_of(x[i] - shift);
}

float softmax_numerators(float* row, int64_t n, float* row_sum) {
  const float top = maximum(row, n);
  if (top == -std::numeric_limits<float>::infinity()) {
    std::fill_n(row, n, 0.0f);
    *row_sum = 0;
    return top;
  }
  exp_minus(row, top, row, n);
  *row_sum = sum(row, n);
  return top + std::log(*row_sum);
}

DSV32_CLONES void hide_clear_bits(uint32_t bits, float* scores, int64_t n) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
#pragma omp simd
  for (int32_t i = 0; i < static_cast<int32_t>(n); ++i) {
    scores[i] = (bits >> i & 1u) != 0 ? scores[i] : kHidden;
  }
}

DSV32_CLONES void softmax_gradient(float a, const float* p, const float* dp, float delta, float* ds,
                                   int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) ds[i] = a * p[i] * (dp[i] - delta);
}

}  // namespace dsv32::optimized::cpu
