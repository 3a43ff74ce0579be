#pragma once

#include <cstdint>

namespace dsv32::optimized::cpu {

/// The largest of n values; -inf of none.
float maximum(const float* x, int64_t n);

/// y = exp(x - shift), by exp_of of exp.h; y may be x.
void exp_minus(const float* x, float shift, float* y, int64_t n);

/// A row of scores becomes exp(score - maximum); gives the log of the sum of exp(score), -inf (and
/// a row of zeros) when every score is -inf. `sum` is that of the row.
float softmax_numerators(float* row, int64_t n, float* sum);

/// Sets score i to -inf where bit i of `bits` is clear, for n <= 32 scores.
void hide_clear_bits(uint32_t bits, float* scores, int64_t n);

/// ds = a p (dp - delta)
void softmax_gradient(float a, const float* p, const float* dp, float delta, float* ds, int64_t n);

}  // namespace dsv32::optimized::cpu
