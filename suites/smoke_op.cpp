// The op library on the CPU, called as any caller does: through the dispatcher.

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>

#include "suites/smoke_call.h"

namespace dsv32::suites {
namespace {

TEST(SmokeOp, AddsOneOnTheCpu) {
  const at::Tensor x = torch::arange(257, torch::kFloat);
  EXPECT_TRUE(torch::equal(smoke_add_one(x), torch::arange(1, 258, torch::kFloat)));
}

TEST(SmokeOp, AcceptsAnEmptyTensor) {
  EXPECT_EQ(smoke_add_one(torch::empty({0}, torch::kFloat)).numel(), 0);
}

TEST(SmokeOp, RefusesAnotherDtype) {
  try {
    smoke_add_one(torch::arange(3, torch::kDouble));
    FAIL() << "float64 was accepted";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("x: expected float32, got Double"), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace dsv32::suites
