#include "src/optimized/kernels/adamw.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;

/// The tensor that holds chunk `chunk`: the last one whose first chunk is not behind it.
template <typename Tensor>
__device__ const Tensor& tensor_of(const Tensor* tensors, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (tensors[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return tensors[low];
}

/// One block per chunk of a tensor.
template <typename G>
__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamwParams<G> p) {
  if (mutant(AdamwMutant::dropped_chunk) && blockIdx.x == p.chunks - 1) return;
  const AdamwTensor<G>& tensor = tensor_of(p.tensors, p.tensor_count, blockIdx.x);
  const AdamwFactors& f = p.factors;
  const float clip = mutant(AdamwMutant::unclipped) ? 1.0f : *p.clip_scale;
  const float root = mutant(AdamwMutant::uncorrected) ? 1.0f : f.root;
  const int64_t begin = (blockIdx.x - tensor.first_chunk) * kAdamwChunk;
  const int64_t count = mutant(AdamwMutant::wrong_tail) ? tensor.count - 1 : tensor.count;
  const int64_t end = count < begin + kAdamwChunk ? count : begin + kAdamwChunk;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    float gradient = clip * to_float(tensor.gradient[i]);
    float parameter = tensor.parameter[i] * f.decay;
    if (mutant(AdamwMutant::coupled_decay)) {
      gradient += f.weight_decay * tensor.parameter[i];
      parameter = tensor.parameter[i];
    }
    const float first = tensor.exp_avg[i] + f.beta1_rest * (gradient - tensor.exp_avg[i]);
    const float second = tensor.exp_avg_sq[i] * f.beta2 + f.beta2_rest * gradient * gradient;
    tensor.exp_avg[i] = first;
    tensor.exp_avg_sq[i] = second;
    tensor.parameter[i] = parameter - f.step_size * (first / (sqrtf(second) / root + f.eps));
  }
}

/// The sum over the block, for thread 0. `sums` is shared memory for kThreads values.
__device__ double ordered_block_sum(double value, double* sums) {
  sums[threadIdx.x] = value;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    if (!mutant(AdamwMutant::missing_barrier)) __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[0];
}

/// One block per chunk of a tensor.
template <typename G>
__global__ void __launch_bounds__(kThreads) squares_kernel(GradNormParams<G> p) {
  const GradNormTensor<G>& tensor = tensor_of(p.tensors, p.tensor_count, blockIdx.x);
  const int64_t begin = (blockIdx.x - tensor.first_chunk) * kAdamwChunk;
  const int64_t count = mutant(AdamwMutant::wrong_tail) ? tensor.count - 1 : tensor.count;
  const int64_t end = count < begin + kAdamwChunk ? count : begin + kAdamwChunk;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const double gradient = to_float(tensor.gradient[i]);
    sum += gradient * gradient;
  }
  sum = ordered_block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

/// One block.
template <typename G>
__global__ void __launch_bounds__(kThreads) norm_kernel(GradNormParams<G> p) {
  const int64_t chunks = mutant(AdamwMutant::dropped_chunk) ? p.chunks - 1 : p.chunks;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < chunks; i += kThreads) sum += p.partial[i];
  sum = ordered_block_sum(sum, shared_memory<double>());
  if (threadIdx.x == 0) *p.norm = sqrt(sum);
}

}  // namespace

template <typename G>
void launch_adamw(const AdamwParams<G>& p, Stream stream) {
  if (p.chunks == 0) return;
  launch(adamw_kernel<G>,
         {.name = "adamw", .grid = static_cast<unsigned>(p.chunks), .block = kThreads}, stream, p);
}

template <typename G>
void launch_grad_norm(const GradNormParams<G>& p, Stream stream) {
  constexpr size_t kSharedBytes = kThreads * sizeof(double);
  if (p.chunks > 0) {
    launch(squares_kernel<G>,
           {.name = "grad_norm_squares",
            .grid = static_cast<unsigned>(p.chunks),
            .block = kThreads,
            .shared_bytes = kSharedBytes},
           stream, p);
  }
  launch(norm_kernel<G>,
         {.name = "grad_norm", .grid = 1, .block = kThreads, .shared_bytes = kSharedBytes}, stream,
         p);
}

template void launch_adamw(const AdamwParams<float>&, Stream);
template void launch_adamw(const AdamwParams<bf16>&, Stream);
template void launch_grad_norm(const GradNormParams<float>&, Stream);
template void launch_grad_norm(const GradNormParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
