#pragma once

/// Each kernel file is compiled twice: by nvcc for a GPU, and by the host compiler (DSV32_SIMT
/// defined) for the executor in this folder. The namespace keeps the two apart in one library.
#if defined(DSV32_SIMT)
#define DSV32_BACKEND simt_backend
#else
#define DSV32_BACKEND cuda_backend
#endif

namespace dsv32::optimized::DSV32_BACKEND {

/// A cudaStream_t, without the CUDA headers. The executor ignores it.
using Stream = void*;

}  // namespace dsv32::optimized::DSV32_BACKEND
