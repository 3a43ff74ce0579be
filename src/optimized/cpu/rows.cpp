#include "src/optimized/cpu/rows.h"

#include "src/optimized/cpu/clones.h"

namespace dsv32::optimized::cpu {

DSV32_CLONES void widen(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i];
}

DSV32_CLONES void widen(const bf16* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]);
}

DSV32_CLONES void narrow(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i];
}

DSV32_CLONES void narrow(const float* x, bf16* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_bf16(x[i]);
}

DSV32_CLONES float sum(const float* x, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i];
  return total;
}

DSV32_CLONES float dot(const float* x, const float* y, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += x[i] * y[i];
  return total;
}

DSV32_CLONES float dot(const bf16* x, const bf16* y, int64_t n) {
  float total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < n; ++i) total += to_float(x[i]) * to_float(y[i]);
  return total;
}

DSV32_CLONES void add(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

DSV32_CLONES void shift(float a, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a;
}

DSV32_CLONES void add_product(const float* x, const float* z, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i] * z[i];
}

DSV32_CLONES void multiply(const float* x, const float* z, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * z[i];
}

DSV32_CLONES void scale(float a, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a * x[i];
}

DSV32_CLONES void combine(float a, const float* x, float b, const float* z, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a * x[i] + b * z[i];
}

}  // namespace dsv32::optimized::cpu
