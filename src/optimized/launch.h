#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>

/// The only place where a kernel is launched.
namespace dsv32::optimized {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

/// Enqueues `kernel(params)` on `stream`. Throws std::runtime_error when the launch itself is
/// refused.
template <typename Params>
void launch(void (*kernel)(Params), const LaunchShape& shape, cudaStream_t stream,
            const Params& params) {
  kernel<<<shape.grid, shape.block, shape.shared_bytes, stream>>>(params);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("kernel launch: ") + cudaGetErrorString(status));
  }
}

}  // namespace dsv32::optimized
