#include "src/optimized/kernels/fp8.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kCodes = 8;  // per thread and load
constexpr unsigned kGroupsPerBlock = 8;

/// One block per matrix row; a thread takes 8 neighbours, which share a scale.
template <typename T>
__global__ void __launch_bounds__(kThreads) fp8_dequant_kernel(Fp8DequantParams<T> p) {
  const int64_t matrix = blockIdx.x / p.rows, row = blockIdx.x % p.rows;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.columns;
  const int64_t end = mutant(Fp8Mutant::wrong_tail) ? p.columns - 1 : p.columns;
  const bool shifted = mutant(Fp8Mutant::row_scale) && row >= kFp8Block;
  const bool aligned = p.columns % kCodes == 0 && is_vector_aligned(p.codes);
  for (int64_t column = threadIdx.x * kCodes; column < p.columns; column += kThreads * kCodes) {
    const float scale = p.scale(matrix, shifted ? row - kFp8Block : row, column);
    Vector<uint8_t, kCodes> codes{};
    if (aligned) {
      codes = load_vector<kCodes>(p.codes + start + column);
    } else {
      for (int i = 0; i < kCodes && column + i < p.columns; ++i) {
        codes.lane[i] = p.codes[start + column + i];
      }
    }
    for (int i = 0; i < kCodes && column + i < end; ++i) {
      float value = decode_e4m3(codes.lane[i]);
      if (mutant(Fp8Mutant::no_subnormals) && (codes.lane[i] & 0x78u) == 0) {
        value = static_cast<float>(codes.lane[i] & 7u) * 0x1p-10f;
      }
      p.values[start + column + i] = from_float<T>(value * scale);
    }
  }
}

/// One warp per group of 128; a lane takes every 32nd value.
template <typename T>
__global__ void __launch_bounds__(kGroupsPerBlock* kWarpSize)
    fp8_quant_kernel(Fp8QuantParams<T> p) {
  constexpr int kPerLane = static_cast<int>(kFp8Block) / kWarpSize;
  const int64_t groups = ceil_div(p.columns, kFp8Block);
  const int64_t group = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.y;
  if (group >= p.rows * groups) return;
  const int64_t row = group / groups, first = group % groups * kFp8Block;
  const int64_t open = mutant(Fp8Mutant::wrong_tail) ? p.columns - 1 : p.columns;
  float values[kPerLane];
  float highest = kFp8Floor;
  for (int i = 0; i < kPerLane; ++i) {
    const int64_t column = first + threadIdx.x + i * kWarpSize;
    const float outside = mutant(Fp8Mutant::stale_group) ? 1e6f : 0.0f;
    values[i] = column < p.columns ? to_float(p.values[row * p.columns + column]) : outside;
    highest = fmaxf(highest, fabsf(values[i]));  // of a NaN and a number the number
  }
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, bits));
  }
  const float finite = fminf(highest, 3.40282347e38f);
  const auto exponent =
      static_cast<uint8_t>(fp8_scale_of(finite) + (mutant(Fp8Mutant::loose_scale) ? 1 : 0));
  // A power of two: the division is exact.
  const float scale = decode_ue8m0(exponent);
  for (int i = 0; i < kPerLane; ++i) {
    const int64_t column = first + threadIdx.x + i * kWarpSize;
    float scaled = values[i] / scale;
    if (mutant(Fp8Mutant::truncated)) scaled = float_of_bits(bits_of_float(scaled) & 0xfff00000u);
    if (column < open) p.codes[row * p.columns + column] = encode_e4m3(scaled);
  }
  if (threadIdx.x == 0) p.exponents[group] = exponent;
}

}  // namespace

template <typename T>
void launch_fp8_dequant(const Fp8DequantParams<T>& p, Stream stream) {
  if (p.batch * p.rows * p.columns == 0) return;
  launch(
      fp8_dequant_kernel<T>,
      {.name = "fp8_dequant", .grid = static_cast<unsigned>(p.batch * p.rows), .block = kThreads},
      stream, p);
}

template <typename T>
void launch_fp8_quant(const Fp8QuantParams<T>& p, Stream stream) {
  const int64_t groups = p.rows * ceil_div(p.columns, kFp8Block);
  if (groups == 0) return;
  launch(fp8_quant_kernel<T>,
         {.name = "fp8_quant",
          .grid = static_cast<unsigned>(ceil_div<int64_t>(groups, kGroupsPerBlock)),
          .block = dim3(kWarpSize, kGroupsPerBlock)},
         stream, p);
}

template void launch_fp8_dequant(const Fp8DequantParams<float>&, Stream);
template void launch_fp8_dequant(const Fp8DequantParams<bf16>&, Stream);
template void launch_fp8_quant(const Fp8QuantParams<float>&, Stream);
template void launch_fp8_quant(const Fp8QuantParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
