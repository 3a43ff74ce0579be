#include "src/optimized/kernels/cache_append.h"
#include "src/optimized/simt/simt.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

constexpr int kThreads = 256;

/// One thread per V bytes; blockIdx.y is the batch element.
template <int V>
__global__ void __launch_bounds__(kThreads) cache_append_kernel(CacheAppendParams p) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  const int64_t bytes = p.rows * p.row_bytes;
  if (i >= (mutant(CacheAppendMutant::wrong_tail) ? bytes - V : bytes)) return;
  const int64_t b = blockIdx.y;
  const int64_t from = mutant(CacheAppendMutant::wrong_batch) ? 0 : b;
  const int64_t first = p.first + (mutant(CacheAppendMutant::wrong_place) ? 1 : 0);
  store_vector<V>(p.cache + (b * p.capacity + first) * p.row_bytes + i,
                  load_vector<V>(p.fresh + from * bytes + i));
}

}  // namespace

void launch_cache_append(const CacheAppendParams& p, Stream stream) {
  constexpr int kVectorBytes = 16;
  const int64_t bytes = p.rows * p.row_bytes;
  if (p.batch * bytes == 0) return;
  const bool vectors =
      p.row_bytes % kVectorBytes == 0 && is_vector_aligned(p.cache) && is_vector_aligned(p.fresh);
  const int64_t per_block = kThreads * (vectors ? kVectorBytes : 2);
  const auto kernel = vectors ? cache_append_kernel<kVectorBytes> : cache_append_kernel<2>;
  launch(kernel,
         {.name = "cache_append",
          .grid = dim3(static_cast<unsigned>(ceil_div(bytes, per_block)),
                       static_cast<unsigned>(p.batch)),
          .block = kThreads},
         stream, p);
}

}  // namespace dsv32::optimized::DSV32_BACKEND
