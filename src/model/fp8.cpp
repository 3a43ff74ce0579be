#include "src/model/fp8.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <string_view>

namespace dsv32 {
namespace {

constexpr uint32_t kFloatMagnitude = 0x7fffffff, kFloatMantissa = 0x7fffff, kFloatBits = 23;
constexpr int kMantissaBits = 3;
constexpr int kLowestExponent = -6;  // of a normal number; below it steps are 2^-9
constexpr uint8_t kNan = 0x7f, kLargest = 0x7e;

float value_of_code(uint8_t code) {
  const int magnitude = code & kNan, exponent = magnitude >> kMantissaBits;
  const int mantissa = magnitude & ((1 << kMantissaBits) - 1);
  if (magnitude == kNan) return std::numeric_limits<float>::quiet_NaN();
  const float size = exponent == 0
                         ? std::ldexp(static_cast<float>(mantissa), kLowestExponent - kMantissaBits)
                         : std::ldexp(static_cast<float>(mantissa + (1 << kMantissaBits)),
                                      exponent - 1 + kLowestExponent - kMantissaBits);
  return (code & 0x80) != 0 ? -size : size;
}

const std::array<float, 256>& code_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> table = {};
    for (int code = 0; code < 256; ++code) table[code] = value_of_code(static_cast<uint8_t>(code));
    return table;
  }();
  return values;
}

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

/// The largest magnitude of rows [first, last) in columns [begin, end).
float amax(const float* matrix, int64_t width, int64_t first, int64_t last, int64_t begin,
           int64_t end) {
  float highest = 0;
  for (int64_t row = first; row < last; ++row)
    for (int64_t i = row * width + begin; i < row * width + end; ++i)
      highest = std::max(highest, std::fabs(matrix[i]));
  return highest;
}

float weight_scale(float highest, const Fp8Config& format) {
  const float scale = highest == 0 ? 1.0F : highest / kLargestE4m3;
  return format.ue8m0() ? power_of_two_above(scale) : scale;
}

}  // namespace

float e4m3_to_float(uint8_t code) { return code_values()[code]; }

uint8_t float_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  const float size = std::bit_cast<float>(bits & kFloatMagnitude);
  if (std::isnan(size)) return sign | kNan;
  if (size >= kLargestE4m3) return sign | kLargest;
  if (size < std::ldexp(1.0F, kLowestExponent)) {
    // A multiple of 2^-9; 8 of them are the first normal code.
    const float steps = std::nearbyint(std::ldexp(size, kMantissaBits - kLowestExponent));
    return sign | static_cast<uint8_t>(steps);
  }
  constexpr uint32_t kDropped = kFloatBits - kMantissaBits;
  constexpr uint32_t kBias = (127 + kLowestExponent - 1) << kMantissaBits;
  const uint32_t magnitude = bits & kFloatMagnitude;
  const uint32_t half = (1U << (kDropped - 1)) - 1 + (magnitude >> kDropped & 1U);
  return sign | static_cast<uint8_t>(((magnitude + half) >> kDropped) - kBias);
}

float e8m0_to_float(uint8_t exponent) {
  if (exponent == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::ldexp(1.0F, exponent - 127);
}

float power_of_two_above(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & kFloatMantissa) == 0) return value;
  return std::ldexp(1.0F, std::ilogb(value) + 1);
}

Shape fp8_scale_shape(const Shape& matrix, const Fp8Config& format) {
  return {blocks(matrix.at(0), format.block_rows), blocks(matrix.at(1), format.block_columns)};
}

Fp8Matrix quantized(const HostTensor& matrix, const Fp8Config& format) {
  const int64_t rows = matrix.shape().at(0), width = matrix.shape().at(1);
  Fp8Matrix out{.codes = HostTensor(DType::uint8, matrix.shape()),
                .scales = HostTensor(DType::float32, fp8_scale_shape(matrix.shape(), format)),
                .block_rows = format.block_rows,
                .block_columns = format.block_columns};
  const float* values = matrix.data<float>().data();
  uint8_t* codes = out.codes.data<uint8_t>().data();
  float* scale = out.scales.data<float>().data();
  for (int64_t first = 0; first < rows; first += format.block_rows) {
    const int64_t last = std::min(first + format.block_rows, rows);
    for (int64_t begin = 0; begin < width; begin += format.block_columns) {
      const int64_t end = std::min(begin + format.block_columns, width);
      *scale = weight_scale(amax(values, width, first, last, begin, end), format);
      for (int64_t row = first; row < last; ++row)
        for (int64_t i = row * width + begin; i < row * width + end; ++i)
          codes[i] = float_to_e4m3(values[i] / *scale);
      ++scale;
    }
  }
  return out;
}

void dequantize_row(std::span<const uint8_t> codes, std::span<const float> scales,
                    int64_t block_columns, std::span<float> values) {
  const std::array<float, 256>& value = code_values();
  const auto width = static_cast<int64_t>(codes.size());
  for (int64_t begin = 0; begin < width; begin += block_columns) {
    const float scale = scales[begin / block_columns];
    const int64_t end = std::min(begin + block_columns, width);
    for (int64_t i = begin; i < end; ++i) values[i] = value[codes[i]] * scale;
  }
}

HostTensor dequantized(const Fp8Matrix& matrix) {
  const auto width = static_cast<size_t>(matrix.codes.shape().at(1));
  const auto across = static_cast<size_t>(matrix.scales.shape().at(1));
  HostTensor out(DType::float32, matrix.codes.shape());
  const auto codes = matrix.codes.data<uint8_t>();
  const auto scales = matrix.scales.data<float>();
  const auto values = out.data<float>();
  for (int64_t row = 0; row < matrix.codes.shape().at(0); ++row) {
    const auto r = static_cast<size_t>(row), block = static_cast<size_t>(row / matrix.block_rows);
    dequantize_row(codes.subspan(r * width, width), scales.subspan(block * across, across),
                   matrix.block_columns, values.subspan(r * width, width));
  }
  return out;
}

bool is_fp8_weight(const std::string& weight_name) {
  constexpr std::array<std::string_view, 10> kEndings = {
      ".q_a_proj.weight", ".q_b_proj.weight",     ".kv_a_proj_with_mqa.weight", ".kv_b_proj.weight",
      ".o_proj.weight",   ".indexer.wq_b.weight", ".indexer.wk.weight",         ".gate_proj.weight",
      ".up_proj.weight",  ".down_proj.weight"};
  return std::any_of(kEndings.begin(), kEndings.end(),
                     [&](std::string_view ending) { return weight_name.ends_with(ending); });
}

}  // namespace dsv32
