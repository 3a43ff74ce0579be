#pragma once

#include <cstdint>

/// The loops over keys of the index_scores CPU kernels.
namespace dsv32::optimized::cpu {

/// y[t] = sum_j weights[j] relu(a[j,t]); a is [heads, n], rows `stride` elements apart.
void weighted_relu_sum(const float* weights, const float* a, int64_t heads, int64_t stride,
                       float* y, int64_t n);

/// a[t] becomes slope[t] where a[t] > 0 and 0 elsewhere. Gives sum_t slope[t] relu(a[t]).
float gate_slopes(const float* slope, float* a, int64_t n);

}  // namespace dsv32::optimized::cpu
