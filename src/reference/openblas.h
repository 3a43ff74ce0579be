#pragma once

#include <string>

/// OpenBLAS out of the scipy-openblas32 wheel, all of whose names start with `scipy_`: it stands
/// beside torch's own BLAS. Loaded when first asked for, because its constructor reads the
/// environment. No torch.
namespace dsv32::reference {

struct OpenBlas {
  /// cblas_dgemm. It runs in the calling thread alone and may be called from several.
  using Dgemm = void (*)(int order, int transpose_a, int transpose_b, int rows, int cols, int depth,
                         double alpha, const double* a, int lda, const double* b, int ldb,
                         double beta, double* c, int ldc);
  Dgemm dgemm = nullptr;
  std::string name;  // "OpenBLAS 0.3.34, SkylakeX": version and the kernels that it chose
};

/// Values of cblas.h.
inline constexpr int kRowMajor = 101, kColMajor = 102, kPlain = 111, kTransposed = 112;

/// nullptr where the library is not there. The first call must not meet a thread that writes the
/// environment.
const OpenBlas* openblas();

}  // namespace dsv32::reference
