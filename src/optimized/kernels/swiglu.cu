#include "src/optimized/kernels/swiglu.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;

struct Sigmoid {
  float value;
  float rest;  // 1 - value, without the cancellation
};

__device__ inline Sigmoid sigmoid(float x) {
  const float decay = expf(-fabsf(x)), large = 1.0f / (1.0f + decay), small = decay * large;
  return x < 0 ? Sigmoid{small, large} : Sigmoid{large, small};
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(SwigluParams<T> p) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  const int64_t end = mutant(SwigluMutant::dropped_tail) ? p.count - 1 : p.count;
  if (i >= end) return;
  const bool swapped = mutant(SwigluMutant::swapped);
  const auto gate = load_vector<V>((swapped ? p.up : p.gate) + i);
  const auto up = load_vector<V>((swapped ? p.gate : p.up) + i);
  Vector<T, V> y;
  for (int j = 0; j < V; ++j) {
    const float g = to_float(gate.lane[j]);
    y.lane[j] = from_float<T>(g * sigmoid(g).value * to_float(up.lane[j]));
  }
  store_vector<V>(p.y + i, y);
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(SwigluBackwardParams<T> p) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (i >= p.count) return;
  const auto dy = load_vector<V>(p.dy + i);
  const auto gate = load_vector<V>(p.gate + i);
  const auto up = load_vector<V>(p.up + i);
  Vector<T, V> dgate, dup;
  for (int j = 0; j < V; ++j) {
    const float g = to_float(gate.lane[j]), d = to_float(dy.lane[j]);
    const Sigmoid s = sigmoid(g);
    const float inner = mutant(SwigluMutant::no_inner_gradient) ? 0.0f : g * s.rest;
    dgate.lane[j] = from_float<T>(d * to_float(up.lane[j]) * s.value * (1.0f + inner));
    dup.lane[j] = from_float<T>(d * s.value * (mutant(SwigluMutant::wrong_dup) ? 1.0f : g));
  }
  store_vector<V>(p.dgate + i, dgate);
  store_vector<V>(p.dup + i, dup);
}

unsigned grid_size(int64_t items) {
  return static_cast<unsigned>(ceil_div<int64_t>(items, kThreads));
}

}  // namespace

template <typename T>
void launch_swiglu(const SwigluParams<T>& p, Stream stream) {
  if (p.count == 0) return;
  constexpr int kVector = kVectorWidth<T>;
  const bool vectors = p.count % kVector == 0 && is_vector_aligned(p.gate) &&
                       is_vector_aligned(p.up) && is_vector_aligned(p.y);
  const auto kernel = vectors ? swiglu_kernel<T, kVector> : swiglu_kernel<T, 1>;
  launch(
      kernel,
      {.name = "swiglu", .grid = grid_size(p.count / (vectors ? kVector : 1)), .block = kThreads},
      stream, p);
}

template <typename T>
void launch_swiglu_backward(const SwigluBackwardParams<T>& p, Stream stream) {
  if (p.count == 0) return;
  constexpr int kVector = kVectorWidth<T>;
  const bool vectors = p.count % kVector == 0 && is_vector_aligned(p.dy) &&
                       is_vector_aligned(p.gate) && is_vector_aligned(p.up) &&
                       is_vector_aligned(p.dgate) && is_vector_aligned(p.dup);
  const auto kernel = vectors ? swiglu_backward_kernel<T, kVector> : swiglu_backward_kernel<T, 1>;
  launch(kernel,
         {.name = "swiglu_backward",
          .grid = grid_size(p.count / (vectors ? kVector : 1)),
          .block = kThreads},
         stream, p);
}

template void launch_swiglu(const SwigluParams<float>&, Stream);
template void launch_swiglu(const SwigluParams<bf16>&, Stream);
template void launch_swiglu_backward(const SwigluBackwardParams<float>&, Stream);
template void launch_swiglu_backward(const SwigluBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
