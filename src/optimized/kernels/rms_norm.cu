#include "src/optimized/kernels/column_sum.h"
#include "src/optimized/kernels/reduce.h"
#include "src/optimized/kernels/rms_norm.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kMaxThreads = 512;
constexpr size_t kScratchBytes = kWarpSize * sizeof(float);

/// One block per row. The row is read twice; the second time it comes from the cache.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(RmsNormParams<T> p) {
  float* scratch = shared_memory<float>();
  const int64_t start = static_cast<int64_t>(blockIdx.x) * p.width;
  const int64_t stride = static_cast<int64_t>(blockDim.x) * V;
  const int64_t end = mutant(RmsNormMutant::wrong_tail) ? p.width - 1 : p.width;

  float squares = 0;
  for (int64_t i = threadIdx.x * V; i < end; i += stride) {
    const auto x = load_vector<V>(p.x + start + i);
    Vector<T, V> residual{};
    if (p.residual != nullptr) residual = load_vector<V>(p.residual + start + i);
    Vector<T, V> sum;
    for (int j = 0; j < V; ++j) {
      const float value = to_float(x.lane[j]) + to_float(residual.lane[j]);
      sum.lane[j] = from_float<T>(value);
      squares += value * value;
    }
    if (p.sum != nullptr) store_vector<V>(p.sum + start + i, sum);
  }
  const int64_t count = mutant(RmsNormMutant::wrong_scale) ? blockDim.x : p.width;
  const float mean = block_sum(squares, scratch) / static_cast<float>(count);
  const float rstd = 1.0f / sqrtf(mean + p.eps);
  if (threadIdx.x == 0) p.rstd[blockIdx.x] = rstd;

  for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
    const auto x = load_vector<V>(p.x + start + i);
    const auto weight = load_vector<V>(p.weight + i);
    Vector<T, V> residual{};
    if (p.residual != nullptr) residual = load_vector<V>(p.residual + start + i);
    Vector<T, V> y;
    for (int j = 0; j < V; ++j) {
      float value = to_float(x.lane[j]) + to_float(residual.lane[j]);
      if (mutant(RmsNormMutant::rounded_sum)) value = to_float(from_float<T>(value));
      y.lane[j] = from_float<T>(value * rstd * to_float(weight.lane[j]));
    }
    store_vector<V>(p.y + start + i, y);
  }
}

/// Block b takes rows b, b + gridDim, ... and keeps its sum of dweight in shared memory, where each
/// thread owns its columns.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_backward_kernel(RmsNormBackwardParams<T> p) {
  float* scratch = shared_memory<float>();
  float* dweight = scratch + kWarpSize;  // [width]
  const int64_t stride = static_cast<int64_t>(blockDim.x) * V;
  if (!mutant(RmsNormMutant::stale_dweight)) {
    for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
      for (int j = 0; j < V; ++j) dweight[i + j] = 0;
    }
  }

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t start = row * p.width;
    const float rstd = p.rstd[row];
    float dot = 0;
    for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
      const auto dy = load_vector<V>(p.dy + start + i);
      const auto x = load_vector<V>(p.x + start + i);
      const auto weight = load_vector<V>(p.weight + i);
      for (int j = 0; j < V; ++j) {
        dot += to_float(dy.lane[j]) * to_float(weight.lane[j]) * (to_float(x.lane[j]) * rstd);
      }
    }
    const float mean = block_sum(dot, scratch) / static_cast<float>(p.width);

    for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
      const auto dy = load_vector<V>(p.dy + start + i);
      const auto x = load_vector<V>(p.x + start + i);
      const auto weight = load_vector<V>(p.weight + i);
      Vector<T, V> dsum{};
      if (p.dsum != nullptr) dsum = load_vector<V>(p.dsum + start + i);
      Vector<T, V> dx;
      for (int j = 0; j < V; ++j) {
        const float normed = to_float(x.lane[j]) * rstd;
        const float slope = to_float(dy.lane[j]) * to_float(weight.lane[j]);
        dx.lane[j] = from_float<T>(rstd * (slope - normed * mean) + to_float(dsum.lane[j]));
        dweight[i + j] += to_float(dy.lane[j]) * normed;
      }
      store_vector<V>(p.dx + start + i, dx);
    }
  }

  for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
    for (int j = 0; j < V; ++j) {
      if (mutant(RmsNormMutant::atomic_dweight)) {
        atomicAdd(p.dweight + i + j, dweight[i + j]);
      } else {
        p.dweight_partial[blockIdx.x * p.width + i + j] = dweight[i + j];
      }
    }
  }
}

/// Eight elements or more per thread, whole warps.
unsigned block_size(int64_t width) {
  const int64_t threads = ceil_div<int64_t>(width, 8 * kWarpSize) * kWarpSize;
  return static_cast<unsigned>(threads < kMaxThreads ? threads : kMaxThreads);
}

}  // namespace

template <typename T>
void launch_rms_norm(const RmsNormParams<T>& p, Stream stream) {
  if (p.rows == 0) return;
  const bool vectors = p.width % kVectorWidth<T> == 0 && is_vector_aligned(p.x) &&
                       is_vector_aligned(p.residual) && is_vector_aligned(p.weight) &&
                       is_vector_aligned(p.y) && is_vector_aligned(p.sum);
  const auto kernel = vectors ? rms_norm_kernel<T, kVectorWidth<T>> : rms_norm_kernel<T, 1>;
  launch(kernel,
         {.name = "rms_norm",
          .grid = static_cast<unsigned>(p.rows),
          .block = block_size(p.width),
          .shared_bytes = kScratchBytes},
         stream, p);
}

template <typename T>
void launch_rms_norm_backward(const RmsNormBackwardParams<T>& p, Stream stream) {
  const int64_t partials = rms_norm_partials(p.rows);
  if (p.rows > 0) {
    const bool vectors = p.width % kVectorWidth<T> == 0 && is_vector_aligned(p.dy) &&
                         is_vector_aligned(p.x) && is_vector_aligned(p.weight) &&
                         is_vector_aligned(p.dsum) && is_vector_aligned(p.dx);
    const auto kernel =
        vectors ? rms_norm_backward_kernel<T, kVectorWidth<T>> : rms_norm_backward_kernel<T, 1>;
    launch(kernel,
           {.name = "rms_norm_backward",
            .grid = static_cast<unsigned>(partials),
            .block = block_size(p.width),
            .shared_bytes = kScratchBytes + static_cast<size_t>(p.width) * sizeof(float)},
           stream, p);
  }
  if (mutant(RmsNormMutant::atomic_dweight)) return;
  const bool drops = mutant(RmsNormMutant::dropped_partial);
  launch_column_sum({.x = p.dweight_partial,
                     .y = p.dweight,
                     .rows = drops ? partials - 1 : partials,
                     .width = p.width},
                    stream);
}

template void launch_rms_norm(const RmsNormParams<float>&, Stream);
template void launch_rms_norm(const RmsNormParams<bf16>&, Stream);
template void launch_rms_norm_backward(const RmsNormBackwardParams<float>&, Stream);
template void launch_rms_norm_backward(const RmsNormBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
