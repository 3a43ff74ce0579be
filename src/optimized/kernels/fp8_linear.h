#pragma once

#include <cstdint>

#include "src/optimized/kernels/fp8.h"

/// A linear layer of fp8 mode (docs/spec.md 1): fp8_quant_runs makes codes and float32 scales of
/// runs of the last axis, fp8_linear multiplies codes run by run and adds the scaled products in
/// float32.
namespace dsv32::optimized {

enum class Fp8LinearMutant {
  none,
  no_floor,       // the scale of a run of tiny values is that of its own magnitude
  scale_below,    // a power of two below, not above
  wrong_tail,     // the last column is not quantised
  first_scale,    // every run of the inner axis takes the weight's first scale
  row_scale,      // rows of a block take the scale of the block above
  run_too_long,   // a tile takes values of the next run
  input_unscaled  // the input's scales are left out
};

/// T: float or bf16.
template <typename T>
struct Fp8QuantRunsParams {
  const T* values;  // [rows, columns]
  uint8_t* codes;   // [rows, columns]
  float* scales;    // [rows, ceil(columns/run)]
  int64_t rows;
  int64_t columns;
  int64_t run;
  bool powers;  // scales are powers of two
};

struct Fp8LinearParams {
  const uint8_t* x;       // [rows, inner] codes
  const float* x_scales;  // [rows, ceil(inner/run)]
  const uint8_t* w;       // [outs, inner] codes
  const float* w_scales;  // [ceil(outs/block_rows), ceil(inner/run)]
  bf16* y;                // [rows, outs]
  int64_t rows;
  int64_t outs;
  int64_t inner;
  int64_t block_rows;
  int64_t run;
};

/// The scale of a run whose largest magnitude is `highest`: highest / 448 as the official release
/// computes it, or the power of two that is not below.
DSV32_HOST_DEVICE inline float fp8_run_scale(float highest, bool powers) {
  const float scale = highest * (1.0f / kFp8Highest);
  if (!powers) return scale;
  const uint32_t bits = bits_of_float(scale);
  const bool exact = (bits & 0x7fffffu) == 0;
  return float_of_bits(exact ? bits : (bits & 0x7f800000u) + (1u << 23));
}

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_fp8_quant_runs(const Fp8QuantRunsParams<T>& params, Stream stream);
void launch_fp8_linear(const Fp8LinearParams& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
