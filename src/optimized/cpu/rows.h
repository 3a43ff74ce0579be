#pragma once

#include <cstdint>

#include "src/optimized/simt/bf16.h"

/// Loops over one row, the words of which the CPU kernels are made. Each is compiled for several
/// instruction sets and picked at load time. Sums are float32 in a fixed order: for one machine, a
/// function of the data alone.
namespace dsv32::optimized::cpu {

void widen(const float* x, float* y, int64_t n);
void widen(const bf16* x, float* y, int64_t n);
void narrow(const float* x, float* y, int64_t n);
void narrow(const float* x, bf16* y, int64_t n);

float sum(const float* x, int64_t n);
float dot(const float* x, const float* y, int64_t n);
float dot(const bf16* x, const bf16* y, int64_t n);
/// y += x
void add(const float* x, float* y, int64_t n);
/// y += a
void shift(float a, float* y, int64_t n);
/// y += x z
void add_product(const float* x, const float* z, float* y, int64_t n);
/// y = x z
void multiply(const float* x, const float* z, float* y, int64_t n);
/// y = a x
void scale(float a, const float* x, float* y, int64_t n);
/// y = a x + b z
void combine(float a, const float* x, float b, const float* z, float* y, int64_t n);

}  // namespace dsv32::optimized::cpu
