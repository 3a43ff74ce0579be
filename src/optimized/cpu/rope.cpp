#include "src/optimized/ops/rope.h"

#include <torch/library.h>

#include <algorithm>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

/// Pair i is lanes (2i, 2i + 1).
template <typename T>
DSV32_CLONES void rotate_neighbours(const T* x, const float* cos, const float* sin, float sign,
                                    T* y, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
    y[2 * i] = from_float<T>(a * cos[i] - b * (sign * sin[i]));
    y[2 * i + 1] = from_float<T>(b * cos[i] + a * (sign * sin[i]));
  }
}

/// Pair i is lanes (i, i + pairs).
template <typename T>
DSV32_CLONES void rotate_halves(const T* x, const float* cos, const float* sin, float sign, T* y,
                                int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = to_float(x[i]), b = to_float(x[i + pairs]);
    y[i] = from_float<T>(a * cos[i] - b * (sign * sin[i]));
    y[i + pairs] = from_float<T>(b * cos[i] + a * (sign * sin[i]));
  }
}

template <typename T>
void rotate(const RopeParams<T>& p) {
  const float sign = p.inverse ? -1.0f : 1.0f;
  const auto rotate_row = p.interleaved ? rotate_neighbours<T> : rotate_halves<T>;
  parallel_for(p.tokens * p.heads, row_grain(p.width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t angles = row / p.heads * p.pairs;
      const T* x = p.x + row * p.width;
      T* y = p.y + row * p.width;
      rotate_row(x, p.cos + angles, p.sin + angles, sign, y, p.pairs);
      std::copy(x + 2 * p.pairs, x + p.width, y + 2 * p.pairs);
    }
  });
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved,
                bool inverse) {
  return run_rope(x, cos, sin, interleaved, inverse, [](const auto& params) { rotate(params); });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) { m.impl("rope", &rope); }

}  // namespace
}  // namespace dsv32::optimized::cpu
