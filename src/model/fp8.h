#pragma once

#include <cstdint>
#include <span>

#include "src/model/config.h"
#include "src/model/tensor.h"

/// FP8 numbers and matrices of them (docs/formats.md 7, docs/spec.md 1, fp8 mode). e4m3: one sign
/// bit, 4 of exponent (bias 7), 3 of mantissa, no infinity; the codes 0x7f and 0xff are NaN.
namespace dsv32 {

inline constexpr float kLargestE4m3 = 448;

float e4m3_to_float(uint8_t code);
/// To nearest, ties to even; beyond 448 it is 448; NaN stays NaN.
uint8_t float_to_e4m3(float value);
/// ue8m0 (float8_e8m0fnu): 2^(exponent - 127); 255 is NaN.
float e8m0_to_float(uint8_t exponent);
/// The smallest power of two that is not below `value`, which is positive and finite.
float power_of_two_above(float value);

/// A matrix of codes, each block with a scale: value = code * scale.
struct Fp8Matrix {
  HostTensor codes;   // [rows,columns] uint8, e4m3
  HostTensor scales;  // [ceil(rows/block_rows),ceil(columns/block_columns)] float32
  int64_t block_rows = 0, block_columns = 0;
};

/// [ceil(rows / block_rows), ceil(columns / block_columns)] for a matrix of shape [rows,columns].
Shape fp8_scale_shape(const Shape& matrix, const Fp8Config& format);

/// Quantises a float32 matrix [rows,columns]: scale = amax / 448 (1 where amax is 0), under ue8m0
/// the power of two above; code = e4m3 of value / scale, in float32.
Fp8Matrix quantized(const HostTensor& matrix, const Fp8Config& format);

/// One row of a quantised matrix: values = code * scale, in float32. `scales`: of its blocks.
void dequantize_row(std::span<const uint8_t> codes, std::span<const float> scales,
                    int64_t block_columns, std::span<float> values);
/// The matrix in float32.
HostTensor dequantized(const Fp8Matrix& matrix);

/// True for a weight that an FP8 checkpoint quantises: every linear layer but the router, the head
/// and the indexer's weights_proj.
bool is_fp8_weight(const std::string& weight_name);

}  // namespace dsv32
