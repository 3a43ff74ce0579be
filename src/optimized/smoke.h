#pragma once

#include <cstdint>

/// smoke_add_one: y = x + 1. It proves that the compiler, the dispatcher and linking work.
namespace dsv32::optimized {

struct SmokeParams {
  const float* x;  // [count]
  float* y;        // [count]
  int64_t count;
};

/// `stream` is a cudaStream_t.
void launch_smoke_add_one(const SmokeParams& params, void* stream);

}  // namespace dsv32::optimized
