#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "src/optimized/kernels/cache_append.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks that cache is [B,Tmax,D] float32 or bfloat16 and contiguous, fresh [B,S,D], and that
/// first + S <= Tmax.
void expect_cache_append(const at::Tensor& cache, const at::Tensor& fresh, int64_t first);

/// `run` takes CacheAppendParams.
template <typename Run>
void run_cache_append(const at::Tensor& cache, const at::Tensor& fresh, int64_t first, Run run) {
  expect_cache_append(cache, fresh, first);
  const at::Tensor rows = fresh.contiguous();
  run(CacheAppendParams{.cache = mutable_pointer<unsigned char>(cache),
                        .fresh = pointer<unsigned char>(rows),
                        .batch = cache.size(0),
                        .capacity = cache.size(1),
                        .rows = fresh.size(1),
                        .first = first,
                        .row_bytes = cache.size(2) * cache.element_size()});
}

}  // namespace dsv32::optimized
