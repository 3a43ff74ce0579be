#include "src/optimized/kernels/fp8_linear.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kRunsPerBlock = 8;
constexpr int kTile = 16;

/// One warp per run; a lane takes every 32nd value.
template <typename T>
__global__ void __launch_bounds__(kRunsPerBlock* kWarpSize)
    fp8_quant_runs_kernel(Fp8QuantRunsParams<T> p) {
  const int64_t runs = ceil_div(p.columns, p.run);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRunsPerBlock + threadIdx.y;
  if (index >= p.rows * runs) return;
  const int64_t row = index / runs, first = index % runs * p.run;
  const int64_t last = first + p.run < p.columns ? first + p.run : p.columns;
  const T* values = p.values + row * p.columns;
  float highest = mutant(Fp8LinearMutant::no_floor) ? 0.0f : kFp8Floor;
  for (int64_t i = first + threadIdx.x; i < last; i += kWarpSize) {
    highest = fmaxf(highest, fabsf(to_float(values[i])));
  }
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, bits));
  }
  float scale = fp8_run_scale(highest, p.powers);
  if (mutant(Fp8LinearMutant::scale_below) && p.powers) scale = scale / 2;
  const int64_t open = mutant(Fp8LinearMutant::wrong_tail) ? p.columns - 1 : p.columns;
  for (int64_t i = first + threadIdx.x; i < last; i += kWarpSize) {
    if (i < open) p.codes[row * p.columns + i] = encode_e4m3(to_float(values[i]) / scale);
  }
  if (threadIdx.x == 0) p.scales[index] = scale;
}

/// One block per 16 x 16 outputs, a thread per output. Codes of a tile are decoded once.
__global__ void __launch_bounds__(kTile* kTile) fp8_linear_kernel(Fp8LinearParams p) {
  float* x_tile = shared_memory<float>(0);
  float* w_tile = shared_memory<float>(sizeof(float) * kTile * (kTile + 1));
  const int tx = static_cast<int>(threadIdx.x), ty = static_cast<int>(threadIdx.y);
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTile + ty;
  const int64_t out = static_cast<int64_t>(blockIdx.x) * kTile + tx;
  const int64_t w_row = static_cast<int64_t>(blockIdx.x) * kTile + ty;  // that this thread loads
  const int64_t runs = ceil_div(p.inner, p.run);
  const bool active = row < p.rows && out < p.outs;
  int64_t block = out / p.block_rows;
  if (mutant(Fp8LinearMutant::row_scale) && block > 0) --block;
  float sum = 0;
  for (int64_t r = 0; r < runs; ++r) {
    const int64_t first = r * p.run;
    const int64_t end = first + p.run < p.inner ? first + p.run : p.inner;
    const int64_t last = mutant(Fp8LinearMutant::run_too_long) ? p.inner : end;
    float part = 0;
    for (int64_t k = first; k < end; k += kTile) {
      const bool inside = k + tx < last;
      x_tile[ty * (kTile + 1) + tx] =
          inside && row < p.rows ? decode_e4m3(p.x[row * p.inner + k + tx]) : 0.0f;
      w_tile[ty * (kTile + 1) + tx] =
          inside && w_row < p.outs ? decode_e4m3(p.w[w_row * p.inner + k + tx]) : 0.0f;
      __syncthreads();
      for (int i = 0; i < kTile; ++i) {
        part += x_tile[ty * (kTile + 1) + i] * w_tile[tx * (kTile + 1) + i];
      }
      __syncthreads();
    }
    if (!active) continue;
    const float x_scale =
        mutant(Fp8LinearMutant::input_unscaled) ? 1.0f : p.x_scales[row * runs + r];
    const int64_t across = mutant(Fp8LinearMutant::first_scale) ? 0 : r;
    sum += part * (x_scale * p.w_scales[block * runs + across]);
  }
  if (active) p.y[row * p.outs + out] = from_float<bf16>(sum);
}

}  // namespace

template <typename T>
void launch_fp8_quant_runs(const Fp8QuantRunsParams<T>& p, Stream stream) {
  const int64_t runs = p.rows * ceil_div(p.columns, p.run);
  if (runs == 0) return;
  launch(fp8_quant_runs_kernel<T>,
         {.name = "fp8_quant_runs",
          .grid = static_cast<unsigned>(ceil_div<int64_t>(runs, kRunsPerBlock)),
          .block = dim3(kWarpSize, kRunsPerBlock)},
         stream, p);
}

void launch_fp8_linear(const Fp8LinearParams& p, Stream stream) {
  if (p.rows * p.outs == 0) return;
  launch(fp8_linear_kernel,
         {.name = "fp8_linear",
          .grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(p.outs, kTile)),
                       static_cast<unsigned>(ceil_div<int64_t>(p.rows, kTile))),
          .block = dim3(kTile, kTile),
          .shared_bytes = 2 * sizeof(float) * kTile * (kTile + 1)},
         stream, p);
}

template void launch_fp8_quant_runs(const Fp8QuantRunsParams<float>&, Stream);
template void launch_fp8_quant_runs(const Fp8QuantRunsParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
