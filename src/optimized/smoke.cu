#include "src/optimized/launch.h"
#include "src/optimized/smoke.h"

namespace dsv32::optimized {
namespace {

constexpr int kThreads = 256;

__global__ void smoke_add_one_kernel(SmokeParams p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < p.count) p.y[i] = p.x[i] + 1.0f;
}

}  // namespace

void launch_smoke_add_one(const SmokeParams& params, void* stream) {
  if (params.count == 0) return;
  const auto blocks = static_cast<unsigned>((params.count + kThreads - 1) / kThreads);
  launch(smoke_add_one_kernel, {.grid = dim3(blocks), .block = dim3(kThreads)},
         static_cast<cudaStream_t>(stream), params);
}

}  // namespace dsv32::optimized
