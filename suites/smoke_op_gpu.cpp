// The op library on a CUDA device.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "suites/smoke_call.h"

namespace dsv32::suites {
namespace {

class SmokeOpGpu : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  }
};

// Exact in float32, so equality and no limit.
TEST_P(SmokeOpGpu, AddsOne) {
  const at::Tensor x = torch::arange(GetParam(), torch::kFloat);
  const at::Tensor y = smoke_add_one(x.to(torch::kCUDA));
  EXPECT_TRUE(y.is_cuda());
  EXPECT_TRUE(torch::equal(y.cpu(), x + 1));
}

INSTANTIATE_TEST_SUITE_P(AroundOneBlock, SmokeOpGpu, testing::Values(0, 1, 255, 256, 257, 100003));

}  // namespace
}  // namespace dsv32::suites
