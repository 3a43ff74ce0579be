#include "src/optimized/ops/fp8.h"

#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

/// The value of every code.
const std::array<float, 256>& code_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table;
    for (int code = 0; code < 256; ++code) table[code] = decode_e4m3(static_cast<uint8_t>(code));
    return table;
  }();
  return values;
}

template <typename T>
void dequantize_rows(const Fp8DequantParams<T>& p, int64_t begin, int64_t end) {
  const std::array<float, 256>& values = code_values();
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* codes = p.codes + row * p.columns;
    T* out = p.values + row * p.columns;
    for (int64_t first = 0; first < p.columns; first += kFp8Block) {
      const float scale = p.scale(row / p.rows, row % p.rows, first);
      const int64_t last = std::min(first + kFp8Block, p.columns);
      for (int64_t i = first; i < last; ++i) out[i] = from_float<T>(values[codes[i]] * scale);
    }
  }
}

template <typename T>
void quantize_rows(const Fp8QuantParams<T>& p, int64_t begin, int64_t end) {
  const int64_t groups = (p.columns + kFp8Block - 1) / kFp8Block;
  for (int64_t group = begin * groups; group < end * groups; ++group) {
    const int64_t first = group % groups * kFp8Block, start = group / groups * p.columns;
    const int64_t last = std::min(first + kFp8Block, p.columns);
    float highest = kFp8Floor;
    for (int64_t i = first; i < last; ++i) {
      const float magnitude = std::abs(to_float(p.values[start + i]));
      if (magnitude > highest) highest = magnitude;
    }
    highest = std::min(highest, std::numeric_limits<float>::max());
    p.exponents[group] = fp8_scale_of(highest);
    const float scale = decode_ue8m0(p.exponents[group]);
    for (int64_t i = first; i < last; ++i) {
      p.codes[start + i] = encode_e4m3(to_float(p.values[start + i]) / scale);
    }
  }
}

at::Tensor fp8_dequant(const at::Tensor& codes, const at::Tensor& scales, at::ScalarType dtype) {
  return run_fp8_dequant(codes, scales, dtype, [](const auto& p) {
    parallel_for(p.batch * p.rows, row_grain(p.columns),
                 [&](int64_t begin, int64_t end) { dequantize_rows(p, begin, end); });
  });
}

std::tuple<at::Tensor, at::Tensor> fp8_quant(const at::Tensor& x) {
  return run_fp8_quant(x, [](const auto& p) {
    parallel_for(p.rows, row_grain(p.columns),
                 [&](int64_t begin, int64_t end) { quantize_rows(p, begin, end); });
  });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("fp8_dequant", &fp8_dequant);
  m.impl("fp8_quant", &fp8_quant);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
