#include "src/optimized/ops/swiglu.h"

#include <torch/library.h>

#include "src/optimized/cpu/clones.h"
#include "src/optimized/cpu/exp.h"
#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // elements

template <typename T>
DSV32_CLONES void forward(const T* gate, const T* up, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(gate[i]);
    y[i] = from_float<T>(g * sigmoid_of(g) * to_float(up[i]));
  }
}

template <typename T>
DSV32_CLONES void backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(gate[i]), d = to_float(dy[i]);
    const Sigmoid s = sigmoid_and_rest(g);
    dgate[i] = from_float<T>(d * to_float(up[i]) * s.value * (1.0f + g * s.rest));
    dup[i] = from_float<T>(d * s.value * g);
  }
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  return run_swiglu(gate, up, [](const auto& p) {
    parallel_for(p.count, kGrain, [&](int64_t begin, int64_t end) {
      forward(p.gate + begin, p.up + begin, p.y + begin, end - begin);
    });
  });
}

std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& dy, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  return run_swiglu_backward(dy, gate, up, [](const auto& p) {
    parallel_for(p.count, kGrain, [&](int64_t begin, int64_t end) {
      backward(p.dy + begin, p.gate + begin, p.up + begin, p.dgate + begin, p.dup + begin,
               end - begin);
    });
  });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("swiglu", &swiglu);
  m.impl("swiglu_backward", &swiglu_backward);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
