#pragma once

/// For the files that are compiled twice (ops/NAME_device.cpp): with DSV32_SIMT the launchers are
/// the executor's and the ops stand in `dsv32_simt` on the CPU key, else they are nvcc's and the
/// ops stand in `dsv32` on the CUDA key.

#include <torch/library.h>

#include "src/optimized/simt/backend.h"

#if defined(DSV32_SIMT)
#define DSV32_DEVICE_OPS(m) TORCH_LIBRARY_IMPL(dsv32_simt, CPU, m)
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define DSV32_DEVICE_OPS(m) TORCH_LIBRARY_IMPL(dsv32, CUDA, m)
#endif

namespace dsv32::optimized::DSV32_BACKEND {

/// Makes the device of a tensor the current one; gives the stream for its kernels.
class DeviceScope {
 public:
#if defined(DSV32_SIMT)
  explicit DeviceScope(const at::Tensor&) {}
  Stream stream() const { return nullptr; }
#else
  explicit DeviceScope(const at::Tensor& tensor) : guard_(tensor.device()) {}
  Stream stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }

 private:
  c10::cuda::CUDAGuard guard_;
#endif
};

}  // namespace dsv32::optimized::DSV32_BACKEND
