#include "src/optimized/kernels/embedding.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr unsigned kThreads = 256;

/// One block per sorted position; the first position of an id adds all of its rows.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(EmbeddingBackwardParams<T> p) {
  const int64_t first = blockIdx.x, id = p.ids[first];
  const bool each = mutant(EmbeddingMutant::atomic_sum);
  if (id < 0 || id >= p.vocabulary) return;
  if (!each && first > 0 && p.ids[first - 1] == id) return;
  int64_t end = first + 1;
  const int64_t tokens = mutant(EmbeddingMutant::dropped_last) ? p.tokens - 1 : p.tokens;
  const bool single = each || mutant(EmbeddingMutant::first_only);
  while (!single && end < tokens && p.ids[end] == id) ++end;
  const int64_t hidden = mutant(EmbeddingMutant::wrong_tail) ? p.hidden - 1 : p.hidden;
  for (int64_t column = threadIdx.x; column < hidden; column += kThreads) {
    float sum = each ? to_float(p.dweight[id * p.hidden + column]) : 0.0f;
    for (int64_t i = first; i < end; ++i) {
      const int64_t token = mutant(EmbeddingMutant::lost_order) ? i : p.order[i];
      sum += to_float(p.dout[token * p.hidden + column]);
    }
    p.dweight[id * p.hidden + column] = from_float<T>(sum);
  }
}

}  // namespace

template <typename T>
void launch_embedding_backward(const EmbeddingBackwardParams<T>& p, Stream stream) {
  if (p.tokens == 0) return;
  launch(embedding_backward_kernel<T>,
         {.name = "embedding_backward", .grid = static_cast<unsigned>(p.tokens), .block = kThreads},
         stream, p);
}

template void launch_embedding_backward(const EmbeddingBackwardParams<float>&, Stream);
template void launch_embedding_backward(const EmbeddingBackwardParams<bf16>&, Stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
