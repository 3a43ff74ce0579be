#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// swiglu: y = silu(gate) up, silu(g) = g sigmoid(g) (docs/spec.md 1.9), forward and backward.
namespace dsv32::optimized {

enum class SwigluMutant {
  none,
  swapped,            // silu(up) gate
  no_inner_gradient,  // dgate without the slope of the sigmoid
  dropped_tail,       // the last element is not written
  wrong_dup,          // dup takes the sigmoid for silu
};

/// T: float or bf16. Arithmetic is float32.
template <typename T>
struct SwigluParams {
  const T* gate;  // [count]
  const T* up;    // [count]
  T* y;           // [count]
  int64_t count;
};

/// With s = sigmoid(gate): dgate = dy up s (1 + gate (1 - s)), dup = dy gate s.
template <typename T>
struct SwigluBackwardParams {
  const T* dy;    // [count]
  const T* gate;  // [count]
  const T* up;    // [count]
  T* dgate;       // [count]
  T* dup;         // [count]
  int64_t count;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_swiglu(const SwigluParams<T>& params, Stream stream);

template <typename T>
void launch_swiglu_backward(const SwigluBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
