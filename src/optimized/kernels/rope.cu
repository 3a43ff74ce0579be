#include "src/optimized/kernels/rope.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;

/// A thread takes V pairs of a row, or V lanes behind them to copy.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeParams<T> p) {
  if (mutant(RopeMutant::dropped_block) && blockIdx.x == gridDim.x - 1) return;
  const int64_t rotating = p.pairs / V;
  const int64_t per_row = rotating + (p.width - 2 * p.pairs) / V;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= p.tokens * p.heads * per_row) return;
  const int64_t row = item / per_row, slot = item % per_row;
  const T* x = p.x + row * p.width;
  T* y = p.y + row * p.width;

  if (slot >= rotating) {
    if (mutant(RopeMutant::rest_left_out)) return;
    const int64_t lane = 2 * p.pairs + (slot - rotating) * V;
    store_vector<V>(y + lane, load_vector<V>(x + lane));
    return;
  }
  const int64_t first = slot * V;
  const bool by_row = mutant(RopeMutant::angle_of_row);
  const int64_t token = by_row ? row % p.tokens : row / p.heads;
  const bool interleaved = p.interleaved != mutant(RopeMutant::other_pairing);
  const int64_t a_lane = interleaved ? 2 * first : first;
  const int64_t b_lane = interleaved ? 2 * first + V : first + p.pairs;
  auto a = load_vector<V>(x + a_lane), b = load_vector<V>(x + b_lane);
  for (int j = 0; j < V; ++j) {
    const float cos = p.cos[token * p.pairs + first + j];
    const float plain_sin = p.sin[token * p.pairs + first + j];
    const bool inverse = p.inverse && !mutant(RopeMutant::never_inverse);
    const float sin = inverse ? -plain_sin : plain_sin;
    // Interleaved, the 2V lanes of a and b hold V pairs of neighbours.
    T& left = !interleaved ? a.lane[j] : 2 * j < V ? a.lane[2 * j] : b.lane[2 * j - V];
    T& right = !interleaved ? b.lane[j] : 2 * j + 1 < V ? a.lane[2 * j + 1] : b.lane[2 * j + 1 - V];
    const float l = to_float(left), r = to_float(right);
    left = from_float<T>(l * cos - r * sin);
    right = from_float<T>(r * cos + l * sin);
  }
  store_vector<V>(y + a_lane, a);
  store_vector<V>(y + b_lane, b);
}

}  // namespace

template <typename T>
void launch_rope(const RopeParams<T>& p, Stream stream) {
  constexpr int kVector = kVectorWidth<T>;
  const bool vectors = p.pairs % kVector == 0 && p.width % kVector == 0 && is_vector_aligned(p.x) &&
                       is_vector_aligned(p.y);
  const int64_t per_row = (p.width - p.pairs) / (vectors ? kVector : 1);
  const int64_t items = p.tokens * p.heads * per_row;
  if (items == 0) return;
  const auto kernel = vectors ? rope_kernel<T, kVector> : rope_kernel<T, 1>;
  launch(kernel,
         {.name = "rope",
          .grid = static_cast<unsigned>(ceil_div<int64_t>(items, kThreads)),
          .block = kThreads},
         stream, p);
}

template void launch_rope(const RopeParams<float>&, Stream);
template void launch_rope(const RopeParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
