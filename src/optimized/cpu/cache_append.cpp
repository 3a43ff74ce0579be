#include "src/optimized/ops/cache_append.h"

#include <torch/library.h>

#include <cstring>

namespace dsv32::optimized::cpu {
namespace {

void append(const CacheAppendParams& p) {
  const int64_t bytes = p.rows * p.row_bytes;
  if (bytes == 0) return;
  for (int64_t b = 0; b < p.batch; ++b) {
    std::memcpy(p.cache + (b * p.capacity + p.first) * p.row_bytes, p.fresh + b * bytes, bytes);
  }
}

void cache_append(const at::Tensor& cache, const at::Tensor& fresh, int64_t first) {
  run_cache_append(cache, fresh, first, [](const CacheAppendParams& params) { append(params); });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) { m.impl("cache_append", &cache_append); }

}  // namespace
}  // namespace dsv32::optimized::cpu
