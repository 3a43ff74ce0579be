#include <stdexcept>

#include "src/optimized/kernels/hadamard.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;

/// min(width, 32) neighbouring lanes share a row, E elements each: the narrow butterflies are
/// within a lane, the wide ones between lanes. C elements are loaded at a time.
template <typename T, int E, int C>
__global__ void __launch_bounds__(kThreads) hadamard_kernel(HadamardParams<T> p) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int lanes = static_cast<int>(p.width) / E;
  const int64_t row = thread / lanes;
  const int lane = static_cast<int>(thread % lanes);
  const int64_t start = row * p.width + lane * E;
  const bool active = row < p.rows;

  float value[E] = {};
  if (active) {
    for (int e = 0; e < E; e += C) {
      const auto x = load_vector<C>(p.x + start + e);
      for (int c = 0; c < C; ++c) value[e + c] = to_float(x.lane[c]);
    }
  }
  for (int width = 1; width < E; width *= 2) {
    for (int e = 0; e < E; ++e) {
      if ((e & width) != 0) continue;
      const float a = value[e], b = value[e + width];
      value[e] = a + b;
      value[e + width] = a - b;
    }
  }
  // Lanes without a row take part: a shuffle needs the whole warp.
  const int end = mutant(HadamardMutant::missing_stage) ? lanes / 2 : lanes;
  for (int distance = 1; distance < end; distance *= 2) {
    const bool upper = ((lane & distance) != 0) != mutant(HadamardMutant::wrong_sign);
    for (int e = 0; e < E; ++e) {
      const float other = __shfl_xor_sync(kFullWarp, value[e], distance);
      value[e] = upper ? other - value[e] : value[e] + other;
    }
  }
  const bool dropped = mutant(HadamardMutant::dropped_row) && row == p.rows - 1;
  if (!active || dropped) return;
  const float scale = mutant(HadamardMutant::no_scale) ? 1.0f : p.scale;
  for (int e = 0; e < E; e += C) {
    Vector<T, C> y;
    for (int c = 0; c < C; ++c) y.lane[c] = from_float<T>(value[e + c] * scale);
    store_vector<C>(p.y + start + e, y);
  }
}

template <typename T, int E>
void launch_lanes(const HadamardParams<T>& p, Stream stream) {
  constexpr int kVector = E < kVectorWidth<T> ? E : kVectorWidth<T>;
  const bool vectors = is_vector_aligned(p.x) && is_vector_aligned(p.y);
  const auto kernel = vectors ? hadamard_kernel<T, E, kVector> : hadamard_kernel<T, E, 1>;
  launch(kernel,
         {.name = "hadamard",
          .grid = static_cast<unsigned>(ceil_div<int64_t>(p.rows * (p.width / E), kThreads)),
          .block = kThreads},
         stream, p);
}

}  // namespace

template <typename T>
void launch_hadamard(const HadamardParams<T>& p, Stream stream) {
  if (p.rows == 0) return;
  switch (p.width) {
    case 256:
      return launch_lanes<T, 8>(p, stream);
    case 128:
      return launch_lanes<T, 4>(p, stream);
    case 64:
      return launch_lanes<T, 2>(p, stream);
    case 32:
    case 16:
    case 8:
    case 4:
    case 2:
    case 1:
      return launch_lanes<T, 1>(p, stream);
    default:
      throw std::invalid_argument("hadamard: width: expected a power of two up to 256, got " +
                                  std::to_string(p.width));
  }
}

template void launch_hadamard(const HadamardParams<float>&, Stream);
template void launch_hadamard(const HadamardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
