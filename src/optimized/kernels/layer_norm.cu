#include "src/optimized/kernels/column_sum.h"
#include "src/optimized/kernels/layer_norm.h"
#include "src/optimized/kernels/reduce.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kMaxThreads = 512;
constexpr size_t kScratchBytes = kWarpSize * sizeof(float);

/// One block per row, which is read three times; all but the first time it comes from the cache.
/// The variance is taken around the mean: rows of small variance lose nothing.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads) layer_norm_kernel(LayerNormParams<T> p) {
  float* scratch = shared_memory<float>();
  const T* row = p.x + static_cast<int64_t>(blockIdx.x) * p.width;
  const int64_t stride = static_cast<int64_t>(blockDim.x) * V;
  const int64_t end = mutant(LayerNormMutant::wrong_tail) ? p.width - 1 : p.width;

  float sum = 0;
  for (int64_t i = threadIdx.x * V; i < end; i += stride) {
    const auto x = load_vector<V>(row + i);
    for (int j = 0; j < V; ++j) sum += to_float(x.lane[j]);
  }
  const float mean = block_sum(sum, scratch) / static_cast<float>(p.width);

  float squares = 0;
  for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
    const auto x = load_vector<V>(row + i);
    for (int j = 0; j < V; ++j) {
      const bool raw = mutant(LayerNormMutant::variance_of_raw);
      const float centred = to_float(x.lane[j]) - (raw ? 0.0f : mean);
      squares += centred * centred;
    }
  }
  const bool unbiased = mutant(LayerNormMutant::unbiased_variance);
  float variance = block_sum(squares, scratch) / static_cast<float>(p.width - (unbiased ? 1 : 0));
  if (mutant(LayerNormMutant::variance_of_raw)) variance -= mean * mean;
  const float rstd = 1.0f / sqrtf(variance + p.eps);
  if (threadIdx.x == 0) {
    p.mean[blockIdx.x] = mean;
    p.rstd[blockIdx.x] = rstd;
  }

  for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
    const auto x = load_vector<V>(row + i);
    const auto weight = load_vector<V>(p.weight + i);
    auto bias = load_vector<V>(p.bias + i);
    if (mutant(LayerNormMutant::no_bias)) bias = {};
    Vector<T, V> y;
    for (int j = 0; j < V; ++j) {
      const float normed = (to_float(x.lane[j]) - mean) * rstd;
      y.lane[j] = from_float<T>(normed * to_float(weight.lane[j]) + to_float(bias.lane[j]));
    }
    store_vector<V>(p.y + static_cast<int64_t>(blockIdx.x) * p.width + i, y);
  }
}

/// Block b takes rows b, b + gridDim, ... and keeps its sums of dweight and dbias in shared memory,
/// where each thread owns its columns.
template <typename T, int V>
__global__ void __launch_bounds__(kMaxThreads)
    layer_norm_backward_kernel(LayerNormBackwardParams<T> p) {
  float* scratch = shared_memory<float>();
  float* dweight = scratch + kWarpSize;  // [width]
  float* dbias = dweight + p.width;      // [width]
  const int64_t stride = static_cast<int64_t>(blockDim.x) * V;
  const float width = static_cast<float>(p.width);
  if (!mutant(LayerNormMutant::stale_sums)) {
    for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
      for (int j = 0; j < V; ++j) dweight[i + j] = dbias[i + j] = 0;
    }
  }

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t start = row * p.width;
    const float mean = p.mean[row], rstd = p.rstd[row];
    float slopes = 0, dots = 0;
    for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
      const auto dy = load_vector<V>(p.dy + start + i);
      const auto x = load_vector<V>(p.x + start + i);
      const auto weight = load_vector<V>(p.weight + i);
      for (int j = 0; j < V; ++j) {
        const float slope = to_float(dy.lane[j]) * to_float(weight.lane[j]);
        slopes += slope;
        dots += slope * ((to_float(x.lane[j]) - mean) * rstd);
      }
    }
    const float slope_mean = block_sum(slopes, scratch) / width;
    const float dot_mean = block_sum(dots, scratch) / width;

    for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
      const auto dy = load_vector<V>(p.dy + start + i);
      const auto x = load_vector<V>(p.x + start + i);
      const auto weight = load_vector<V>(p.weight + i);
      Vector<T, V> dx;
      for (int j = 0; j < V; ++j) {
        const float normed = (to_float(x.lane[j]) - mean) * rstd;
        const float slope = to_float(dy.lane[j]) * to_float(weight.lane[j]);
        dx.lane[j] = from_float<T>(rstd * (slope - slope_mean - normed * dot_mean));
        dweight[i + j] += to_float(dy.lane[j]) * normed;
        dbias[i + j] += to_float(dy.lane[j]);
      }
      store_vector<V>(p.dx + start + i, dx);
    }
  }

  for (int64_t i = threadIdx.x * V; i < p.width; i += stride) {
    for (int j = 0; j < V; ++j) {
      p.dweight_partial[blockIdx.x * p.width + i + j] = dweight[i + j];
      p.dbias_partial[blockIdx.x * p.width + i + j] = dbias[i + j];
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
void launch_layer_norm(const LayerNormParams<T>& p, Stream stream) {
  if (p.rows == 0) return;
  const bool vectors = p.width % kVectorWidth<T> == 0 && is_vector_aligned(p.x) &&
                       is_vector_aligned(p.weight) && is_vector_aligned(p.bias) &&
                       is_vector_aligned(p.y);
  const auto kernel = vectors ? layer_norm_kernel<T, kVectorWidth<T>> : layer_norm_kernel<T, 1>;
  launch(kernel,
         {.name = "layer_norm",
          .grid = static_cast<unsigned>(p.rows),
          .block = block_size(p.width),
          .shared_bytes = kScratchBytes},
         stream, p);
}

template <typename T>
void launch_layer_norm_backward(const LayerNormBackwardParams<T>& p, Stream stream) {
  const int64_t partials = layer_norm_partials(p.rows);
  if (p.rows > 0) {
    const bool vectors = p.width % kVectorWidth<T> == 0 && is_vector_aligned(p.dy) &&
                         is_vector_aligned(p.x) && is_vector_aligned(p.weight) &&
                         is_vector_aligned(p.dx);
    const auto kernel =
        vectors ? layer_norm_backward_kernel<T, kVectorWidth<T>> : layer_norm_backward_kernel<T, 1>;
    launch(kernel,
           {.name = "layer_norm_backward",
            .grid = static_cast<unsigned>(partials),
            .block = block_size(p.width),
            .shared_bytes = kScratchBytes + 2 * static_cast<size_t>(p.width) * sizeof(float)},
           stream, p);
  }
  const int64_t added = mutant(LayerNormMutant::dropped_partial) ? partials - 1 : partials;
  launch_column_sum({.x = p.dweight_partial, .y = p.dweight, .rows = added, .width = p.width},
                    stream);
  launch_column_sum({.x = p.dbias_partial, .y = p.dbias, .rows = added, .width = p.width}, stream);
}

template void launch_layer_norm(const LayerNormParams<float>&, Stream);
template void launch_layer_norm(const LayerNormParams<bf16>&, Stream);
template void launch_layer_norm_backward(const LayerNormBackwardParams<float>&, Stream);
template void launch_layer_norm_backward(const LayerNormBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
