#include "src/bridge/parallel.h"

#include <ATen/Parallel.h>

namespace dsv32 {

// at::parallel_for is serial where it is compiled without OpenMP.
#if !defined(_OPENMP)
#error "compile with -fopenmp"
#endif

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  at::parallel_for(0, count, grain, body);
}

}  // namespace dsv32
