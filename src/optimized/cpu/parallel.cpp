#include "src/optimized/cpu/parallel.h"

#include <ATen/Parallel.h>

namespace dsv32::optimized::cpu {

// The only file that is compiled with OpenMP: at::parallel_for is serial without.
#if !defined(_OPENMP)
#error "compile with -fopenmp"
#endif

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  at::parallel_for(0, count, grain, body);
}

}  // namespace dsv32::optimized::cpu
