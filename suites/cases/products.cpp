// Float64 products by OpenBLAS against torch's, on small integers: no sum of theirs is rounded, so
// that every order gives the same bits.

#include <gtest/gtest.h>

#include <limits>

#include "src/reference/float64_products.h"
#include "src/reference/reference.h"

namespace dsv32::suites {
namespace {

using reference::goes_to_openblas;
using reference::openblas_product;
using torch::Tensor;

Tensor integers(at::IntArrayRef shape, int64_t seed) {
  auto generator = torch::make_generator<torch::CPUGeneratorImpl>(seed);
  return torch::randint(-9, 10, shape, generator, torch::kFloat64);
}

/// As [..,rows,cols], stored by columns.
Tensor by_columns(const Tensor& t) { return t.transpose(-1, -2).contiguous().transpose(-1, -2); }

void expect_same(const Tensor& a, const Tensor& b, const std::string& what) {
  EXPECT_TRUE(torch::equal(openblas_product(a, b), torch::matmul(a, b)))
      << what << ": " << a.sizes() << " times " << b.sizes();
}

constexpr int64_t kEdges[] = {1, 2, 15, 16, 17, 33, 130};

TEST(Products, AreThoseOfTorchOnEverySizeAndStorage) {
  for (const int64_t rows : kEdges) {
    for (const int64_t cols : kEdges) {
      for (const int64_t depth : {1, 7, 16, 131}) {
        const Tensor a = integers({rows, depth}, 1), b = integers({depth, cols}, 2);
        expect_same(a, b, "plain");
        expect_same(by_columns(a), b, "a by columns");
        expect_same(a, by_columns(b), "b by columns");
        expect_same(by_columns(a), by_columns(b), "both by columns");
      }
    }
  }
}

TEST(Products, DoNotDependOnTheNumberOfThreads) {
  const int before = at::get_num_threads();
  for (const int threads : {1, 2, 3, 5}) {
    at::set_num_threads(threads);
    for (const int64_t matrices : {1, 2, 3, 7, 24}) {
      const Tensor a = integers({matrices, 50, 20}, 3), b = integers({matrices, 20, 70}, 4);
      expect_same(a, b, std::to_string(threads) + " threads, wide");
      expect_same(b.transpose(-1, -2), a.transpose(-1, -2), std::to_string(threads) + ", high");
    }
  }
  at::set_num_threads(before);
}

TEST(Products, ReadOperandsWhereTheyLie) {
  const Tensor wide = integers({40, 90}, 5), b = integers({30, 17}, 6);
  expect_same(wide.narrow(1, 20, 30), b, "rows apart");
  expect_same(wide.slice(1, 0, 60, 2), b, "every second column");
  expect_same(integers({1, 30}, 7).expand({12, 30}), b, "one row many times");
  const Tensor q = integers({2, 21, 3, 8}, 8), k = integers({2, 25, 3, 8}, 9);  // [B,S,H,D]
  expect_same(q.transpose(1, 2), k.transpose(1, 2).transpose(-1, -2), "heads of a row");
  const Tensor probs = integers({2, 3, 21, 25}, 10), latent = integers({2, 25, 11}, 11);
  expect_same(probs, latent.unsqueeze(1).expand({2, 3, 25, 11}), "one matrix for all heads");
}

struct Gradients {
  Tensor a, b;
};

Gradients gradients(const Tensor& a, const Tensor& b,
                    Tensor (*product)(const Tensor&, const Tensor&)) {
  const Tensor left = a.detach().requires_grad_(true), right = b.detach().requires_grad_(true);
  const Tensor c = product(left.expand_as(a), right);
  c.backward(integers(c.sizes(), 12));
  return {left.grad(), right.grad()};
}

Tensor torch_product(const Tensor& a, const Tensor& b) { return torch::matmul(a, b); }

TEST(Products, HaveTheGradientsOfTorch) {
  for (const bool a_by_columns : {false, true}) {
    for (const bool b_by_columns : {false, true}) {
      Tensor a = integers({3, 19, 35}, 13), b = integers({3, 35, 24}, 14);
      if (a_by_columns) a = by_columns(a);
      if (b_by_columns) b = by_columns(b);
      const Gradients ours = gradients(a, b, openblas_product);
      const Gradients theirs = gradients(a, b, torch_product);
      EXPECT_TRUE(torch::equal(ours.a, theirs.a) && torch::equal(ours.b, theirs.b))
          << a_by_columns << b_by_columns;
    }
  }
}

TEST(Products, AddTheGradientsOfAnExpandedOperand) {
  const Tensor probs = integers({2, 3, 21, 25}, 15).requires_grad_(true);
  Tensor sums[2];
  for (int side = 0; side < 2; ++side) {
    const Tensor latent = integers({2, 1, 25, 11}, 16).requires_grad_(true);
    const Tensor all = latent.expand({2, 3, 25, 11});
    (side == 0 ? openblas_product(probs, all) : torch::matmul(probs, all)).sum().backward();
    sums[side] = latent.grad();
  }
  EXPECT_TRUE(torch::equal(sums[0], sums[1]));
}

TEST(Products, OfAWeightGiveAGradientThatLiesAsTheWeight) {
  const Tensor x = integers({20, 30}, 17), weight = integers({12, 30}, 18).requires_grad_(true);
  openblas_product(x, weight.t()).sum().backward();
  EXPECT_EQ(weight.grad().strides(), weight.strides());
  EXPECT_TRUE(torch::equal(weight.grad(), x.sum(0).expand({12, 30})));
}

TEST(Products, OfNanAreNanInItsRowAlone) {
  Tensor a = integers({18, 33}, 19);
  a[5][7] = std::numeric_limits<double>::quiet_NaN();
  const Tensor rows = openblas_product(a, integers({33, 20}, 20)).isnan().all(-1);
  EXPECT_EQ(rows.sum().item<int64_t>(), 1);
  EXPECT_TRUE(rows[5].item<bool>());
}

TEST(Products, OfOtherKindsStayWithTorch) {
  const Tensor large = torch::ones({512, 512}, torch::kFloat64);
  EXPECT_FALSE(goes_to_openblas(large.to(torch::kFloat32), large.to(torch::kFloat32)));
  EXPECT_FALSE(goes_to_openblas(torch::empty({0, 512}, torch::kFloat64), large));
  EXPECT_FALSE(goes_to_openblas(torch::ones({8, 8}, torch::kFloat64), large.narrow(0, 0, 8)));
}

TEST(Products, OfLargeMatricesGoWhereTheReportSays) {
  const Tensor large = torch::ones({512, 512}, torch::kFloat64);
  EXPECT_EQ(reference::float64_products(), "torch");
  const bool goes = goes_to_openblas(large, large);
  EXPECT_EQ(goes, reference::float64_products().starts_with("OpenBLAS 0."))
      << reference::float64_products();
  EXPECT_EQ(goes, goes_to_openblas(large, large));
}

}  // namespace
}  // namespace dsv32::suites
