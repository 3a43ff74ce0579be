#include "src/optimized/ops/cache_append.h"
#include "src/optimized/ops/device.h"

namespace dsv32::optimized::DSV32_BACKEND {
namespace {

void cache_append(const at::Tensor& cache, const at::Tensor& fresh, int64_t first) {
  const DeviceScope device(cache);
  run_cache_append(cache, fresh, first, [&](const CacheAppendParams& params) {
    launch_cache_append(params, device.stream());
  });
}

}  // namespace

DSV32_DEVICE_OPS(m) { m.impl("cache_append", &cache_append); }

}  // namespace dsv32::optimized::DSV32_BACKEND
