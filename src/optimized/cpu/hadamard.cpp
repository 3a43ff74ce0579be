#include "src/optimized/ops/hadamard.h"

#include <torch/library.h>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/rows.h"

namespace dsv32::optimized::cpu {
namespace {

/// One butterfly stage over a row: a + b and a - b for elements `width` apart.
DSV32_CLONES void stage(float* x, int64_t n, int64_t width) {
  for (int64_t start = 0; start < n; start += 2 * width) {
    float *a = x + start, *b = x + start + width;
    for (int64_t i = 0; i < width; ++i) {
      const float sum = a[i] + b[i], difference = a[i] - b[i];
      a[i] = sum;
      b[i] = difference;
    }
  }
}

template <typename T>
void transform(const HadamardParams<T>& p) {
  const int64_t n = p.width;
  parallel_for(p.rows, row_grain(n), [&](int64_t begin, int64_t end) {
    float row_values[kHadamardMaxWidth];
    for (int64_t row = begin; row < end; ++row) {
      widen(p.x + row * n, row_values, n);
      for (int64_t width = 1; width < n; width *= 2) stage(row_values, n, width);
      scale(p.scale, row_values, row_values, n);
      narrow(row_values, p.y + row * n, n);
    }
  });
}

at::Tensor hadamard(const at::Tensor& x, double scale) {
  return run_hadamard(x, scale, [](const auto& params) { transform(params); });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) { m.impl("hadamard", &hadamard); }

}  // namespace
}  // namespace dsv32::optimized::cpu
