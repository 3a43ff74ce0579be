#include "src/optimized/kernels/linear_cross_entropy.h"
#include "src/optimized/kernels/reduce.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;
constexpr size_t kScratchBytes = kWarpSize * sizeof(float);

/// Every thread gets the maximum over the block. `scratch` is shared memory for 32 floats, free
/// again when the function returns.
__device__ float block_max(float value, float* scratch) {
  const unsigned lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, bits));
  }
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  for (unsigned w = 0; w < kThreads / kWarpSize; ++w) value = fmaxf(value, scratch[w]);
  __syncthreads();
  return value;
}

/// One block per token.
__global__ void __launch_bounds__(kThreads) cross_entropy_chunk_kernel(CrossEntropyChunkParams p) {
  float* scratch = shared_memory<float>();
  const int64_t row = blockIdx.x;
  const float* logits = p.logits + row * p.columns;
  const int64_t columns = mutant(CrossEntropyMutant::wrong_tail) ? p.columns - 1 : p.columns;
  float highest = -INFINITY;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) highest = fmaxf(highest, logits[i]);
  highest = block_max(highest, scratch);
  const float before = p.highest[row];
  const float now = fmaxf(before, highest);
  // Where all logits so far are -inf, their sum is 0.
  const float shift = now == -INFINITY ? 0.0f : now;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) sum += expf(logits[i] - shift);
  sum = block_sum(sum, scratch);
  if (threadIdx.x != 0) return;
  const float rescale = mutant(CrossEntropyMutant::not_rescaled) ? 1.0f : expf(before - shift);
  p.sum[row] = p.sum[row] * rescale + sum;
  p.highest[row] = now;
  const int64_t first = mutant(CrossEntropyMutant::wrong_label) ? 0 : p.first_column;
  const int64_t label = p.labels[row] - first;
  if (label >= 0 && label < p.columns) p.picked[row] = logits[label];
}

/// One block; float64 sums in a fixed order.
__global__ void __launch_bounds__(kThreads) cross_entropy_loss_kernel(CrossEntropyLossParams p) {
  double* losses = shared_memory<double>();                             // [kThreads]
  int64_t* counts = shared_memory<int64_t>(kThreads * sizeof(double));  // [kThreads]
  const int64_t rows = mutant(CrossEntropyMutant::dropped_row) ? p.rows - 1 : p.rows;
  double loss = 0;
  int64_t count = 0;
  for (int64_t row = threadIdx.x; row < p.rows; row += kThreads) {
    const double lse = p.highest[row] + log(static_cast<double>(p.sum[row]));
    p.lse[row] = lse;
    const bool ignored = p.labels[row] == kIgnoredLabel;
    if (!ignored || mutant(CrossEntropyMutant::counts_ignored)) ++count;
    if (!ignored && row < rows) loss += lse - p.picked[row];
  }
  losses[threadIdx.x] = loss;
  counts[threadIdx.x] = count;
  if (!mutant(CrossEntropyMutant::missing_barrier)) __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned i = 1; i < kThreads; ++i) {
    loss += losses[i];
    count += counts[i];
  }
  *p.loss = static_cast<float>(loss / static_cast<double>(count));
}

/// One block per token.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_gradient_kernel(CrossEntropyGradientParams<T> p) {
  const int64_t row = blockIdx.x;
  const float* logits = p.logits + row * p.columns;
  T* dlogits = p.dlogits + row * p.columns;
  const bool ignored = p.labels[row] == kIgnoredLabel;
  const double lse = p.lse[row];
  const float high = static_cast<float>(lse), scale = *p.scale;
  const float low = mutant(CrossEntropyMutant::rounded_lse) ? 0.0f : static_cast<float>(lse - high);
  const int64_t first = mutant(CrossEntropyMutant::wrong_label) ? 0 : p.first_column;
  const int64_t label = p.labels[row] - first;
  for (int64_t i = threadIdx.x; i < p.columns; i += kThreads) {
    const float prob = expf(logits[i] - high - low);
    const float gradient = (prob - (i == label ? 1.0f : 0.0f)) * scale;
    const bool keeps = !ignored || mutant(CrossEntropyMutant::ignored_gradient);
    dlogits[i] = from_float<T>(keeps ? gradient : 0.0f);
  }
}

}  // namespace

void launch_cross_entropy_chunk(const CrossEntropyChunkParams& p, Stream stream) {
  if (p.rows == 0) return;
  launch(cross_entropy_chunk_kernel,
         {.name = "cross_entropy_chunk",
          .grid = static_cast<unsigned>(p.rows),
          .block = kThreads,
          .shared_bytes = kScratchBytes},
         stream, p);
}

void launch_cross_entropy_loss(const CrossEntropyLossParams& p, Stream stream) {
  launch(cross_entropy_loss_kernel,
         {.name = "cross_entropy_loss",
          .grid = 1,
          .block = kThreads,
          .shared_bytes = kThreads * (sizeof(double) + sizeof(int64_t))},
         stream, p);
}

template <typename T>
void launch_cross_entropy_gradient(const CrossEntropyGradientParams<T>& p, Stream stream) {
  if (p.rows == 0) return;
  launch(
      cross_entropy_gradient_kernel<T>,
      {.name = "cross_entropy_gradient", .grid = static_cast<unsigned>(p.rows), .block = kThreads},
      stream, p);
}

template void launch_cross_entropy_gradient(const CrossEntropyGradientParams<float>&, Stream);
template void launch_cross_entropy_gradient(const CrossEntropyGradientParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
