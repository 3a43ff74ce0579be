#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"

/// cache_append: puts the rows of a call behind those of earlier calls, in place.
namespace dsv32::optimized {

enum class CacheAppendMutant {
  none,
  wrong_tail,   // the last 16 bytes of a batch element stay as they were
  wrong_place,  // one row too late
  wrong_batch,  // every batch element gets the first one's rows
};

/// Rows as bytes: the same for every dtype.
struct CacheAppendParams {
  unsigned char* cache;        // [batch, capacity, row_bytes]
  const unsigned char* fresh;  // [batch, rows, row_bytes]
  int64_t batch;
  int64_t capacity;
  int64_t rows;
  int64_t first;  // first + rows <= capacity
  int64_t row_bytes;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

void launch_cache_append(const CacheAppendParams& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
