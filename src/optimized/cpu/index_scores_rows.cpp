#include "src/optimized/cpu/index_scores_rows.h"

#include <algorithm>

#include "src/optimized/cpu/clones.h"

namespace dsv32::optimized::cpu {

DSV32_CLONES void weighted_relu_sum(const float* weights, const float* a, int64_t heads,
                                    int64_t stride, float* y, int64_t n) {
  std::fill_n(y, n, 0.0f);
  for (int64_t j = 0; j < heads; ++j) {
    const float weight = weights[j];
    const float* row = a + j * stride;
#pragma omp simd
    for (int64_t t = 0; t < n; ++t) y[t] += weight * (row[t] > 0 ? row[t] : 0.0f);
  }
}

DSV32_CLONES float gate_slopes(const float* slope, float* a, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t t = 0; t < n; ++t) {
    const float on = a[t] > 0 ? slope[t] : 0.0f;
    total += on * a[t];
    a[t] = on;
  }
  return total;
}

}  // namespace dsv32::optimized::cpu
