// The reference's sums in sequential order against plain loops: every element, bit for bit, on the
// edges of the kernel's tiles; gradients in the same order; float64 left to torch.

#include "src/reference/sums.h"

#include <gtest/gtest.h>

#include "src/bridge/libtorch.h"

namespace dsv32::reference {
namespace {

constexpr Summation kSequential = Summation::sequential;

Tensor values(std::vector<int64_t> shape, int64_t seed) {
  torch::manual_seed(seed);
  return torch::randn(shape, torch::kFloat32);
}

/// One product after the other, each rounded before it is added.
float plain_sum(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  const float* p = x.const_data_ptr<float>();
  const float* q = y.const_data_ptr<float>();
  float sum = 0;
  for (int64_t k = 0; k < x.numel(); ++k) {
    volatile float product = p[k] * q[k];  // no fused multiply-add
    sum += product;
  }
  return sum;
}

/// How many elements of a times b are not the plain sum.
int64_t wrong_elements(const Tensor& a, const Tensor& b, const Tensor& product) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < a.size(0); ++i)
    for (int64_t j = 0; j < b.size(1); ++j)
      wrong += product[i][j].item<float>() != plain_sum(a[i], b.select(1, j)) ? 1 : 0;
  return wrong;
}

TEST(SelfSums, EveryElementIsThePlainSum) {
  for (const int64_t rows : {1, 3, 4, 5, 9})
    for (const int64_t cols : {1, 31, 32, 33, 70}) {
      const Tensor a = values({rows, 67}, rows), b = values({67, cols}, cols);
      EXPECT_EQ(wrong_elements(a, b, product({kSequential}, a, b)), 0) << rows << " x " << cols;
    }
}

/// A weight's: more rows than a task takes, fewer than the inner axis, where the transposes are
/// multiplied, and as many.
TEST(SelfSums, ATransposedFactorChangesNothing) {
  for (const int64_t rows : {1, 31, 33, 140, 200})
    for (const int64_t cols : {5, 70}) {
      const Tensor a = values({rows, 150}, rows), b = values({cols, 150}, cols).t();
      EXPECT_EQ(wrong_elements(a, b, product({kSequential}, a, b)), 0) << rows << " x " << cols;
    }
}

TEST(SelfSums, AnInnerAxisOfNoneOrOneElement) {
  const Tensor a = values({4, 1}, 1), b = values({1, 33}, 2);
  EXPECT_EQ(wrong_elements(a, b, product({kSequential}, a, b)), 0);
  EXPECT_TRUE(
      product({kSequential}, values({2, 0}, 1), values({0, 3}, 1)).eq(0).all().item<bool>());
}

TEST(SelfSums, BatchAxesBroadcast) {
  const Tensor a = values({2, 3, 5, 8}, 1), b = values({2, 1, 8, 6}, 2);
  const Tensor whole = product({kSequential}, a, b);
  ASSERT_EQ(whole.sizes(), (std::vector<int64_t>{2, 3, 5, 6}));
  EXPECT_EQ(wrong_elements(a[1][2], b[1][0], whole[1][2]), 0);
}

TEST(SelfSums, AWeightIsReadByItsRows) {
  const Tensor x = values({2, 7, 40}, 1), weight = values({9, 40}, 2);
  const Tensor y = product_with_weight({kSequential}, x, weight);
  ASSERT_EQ(y.sizes(), (std::vector<int64_t>{2, 7, 9}));
  EXPECT_EQ(wrong_elements(x[1], weight.t(), y[1]), 0);
}

TEST(SelfSums, GradientsAreProductsInTheSameOrder) {
  Tensor a = values({5, 40}, 1).requires_grad_(true), b = values({40, 6}, 2).requires_grad_(true);
  const Tensor upstream = values({5, 6}, 3);
  product({kSequential}, a, b).backward(upstream);
  torch::NoGradGuard no_grad;
  EXPECT_EQ(wrong_elements(upstream, b.t(), a.grad()), 0);
  EXPECT_EQ(wrong_elements(a.t(), upstream, b.grad()), 0);
}

TEST(SelfSums, RowsAreAddedFromTheLeft) {
  const Tensor x = values({3, 100}, 4);
  const Tensor sums = row_sums(kSequential, x);
  ASSERT_EQ(sums.sizes(), (std::vector<int64_t>{3, 1}));
  for (int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(sums[i].item<float>(), plain_sum(x[i], torch::ones({100})));
  Tensor leaf = x.clone().requires_grad_(true);
  row_sums(kSequential, leaf).sum().backward();
  EXPECT_TRUE(leaf.grad().eq(1).all().item<bool>());
}

TEST(SelfSums, ASoftmaxIsOneUpToRounding) {
  Tensor x = values({4, 50}, 5);
  x[1].slice(0, 0, 20).fill_(-std::numeric_limits<float>::infinity());
  const Tensor exact = torch::softmax(x.to(torch::kFloat64), -1);
  const Tensor probs = softmax(kSequential, x);
  EXPECT_TRUE(torch::allclose(probs.to(torch::kFloat64), exact));
  EXPECT_TRUE(probs[1].slice(0, 0, 20).eq(0).all().item<bool>());
  const Tensor logs = torch::log_softmax(x.to(torch::kFloat64), -1);
  EXPECT_TRUE(torch::allclose(log_softmax(kSequential, x).to(torch::kFloat64), logs));
}

TEST(SelfSums, OperandsAreRoundedToTheirType) {
  const double step = std::ldexp(1.0, -10);  // of a TF32 number in [1, 2)
  const Tensor x =
      torch::tensor({1 + step, 1 + 0.75 * step, -(1 + 0.25 * step), 3.0, 0.0}, torch::kFloat64);
  const auto same = [](const Tensor& got, std::vector<double> want) {
    return got.equal(torch::tensor(want, torch::kFloat64));
  };
  EXPECT_TRUE(as_operand(x, Operands::exact).equal(x));
  EXPECT_TRUE(same(as_operand(x, Operands::tf32), {1 + step, 1 + step, -1, 3, 0}));
  EXPECT_TRUE(same(as_operand(x, Operands::float16), {1 + step, 1 + step, -1, 3, 0}));
  EXPECT_TRUE(same(as_operand(x, Operands::bfloat16), {1, 1, -1, 3, 0}));
  const Tensor rounded = product({.operands = Operands::bfloat16}, x.view({1, 5}), x.view({5, 1}));
  EXPECT_EQ(rounded.item<double>(), 1 + 1 + 1 + 9);
  Tensor leaf = x.clone().requires_grad_(true);
  as_operand(leaf, Operands::tf32).sum().backward();
  EXPECT_TRUE(leaf.grad().eq(1).all().item<bool>());
}

TEST(SelfSums, Float64AndBlockedRunsAreTorchs) {
  const Tensor a = values({9, 67}, 1), b = values({67, 33}, 2);
  EXPECT_TRUE(product({Summation::blocked}, a, b).equal(torch::matmul(a, b)));
  const Tensor wide = a.to(torch::kFloat64), other = b.to(torch::kFloat64);
  EXPECT_TRUE(product({kSequential}, wide, other).equal(torch::matmul(wide, other)));
}

}  // namespace
}  // namespace dsv32::reference
