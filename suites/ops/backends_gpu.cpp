// Where the op suites run on a CUDA device.

#include <torch/cuda.h>

#include "suites/ops/kit.h"

namespace dsv32::suites {

std::vector<Backend> op_backends() { return {{"dsv32", at::kCUDA}}; }

void OpTest::SetUp() {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
}

}  // namespace dsv32::suites
