// The hadamard kernel in the executor, against float64.

#include "src/optimized/kernels/hadamard.h"

#include <bit>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized;
using namespace optimized::DSV32_BACKEND;

struct Shape {
  int64_t rows, width;
};

// Every width; rows around those of a warp and of a block (256 threads).
const Shape kShapes[] = {{1, 1},  {257, 1}, {33, 2}, {7, 4},  {9, 8},    {3, 16},
                         {1, 32}, {9, 32},  {8, 64}, {9, 64}, {17, 128}, {9, 256}};

template <typename T>
Oracle oracle(const std::vector<T>& x, const Shape& shape, double scale) {
  const auto [rows, width] = shape;
  Oracle want(rows * width, true);
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t row = i / width, column = i % width;
    for (int64_t j = 0; j < width; ++j) {
      const double term = scale * to_float(x[row * width + j]);
      const bool odd = std::popcount(static_cast<uint64_t>(column & j)) % 2 == 1;
      want.value[i] += odd ? -term : term;
      want.scale[i] += std::abs(term);
    }
  }
  return want;
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const float scale = 1 / std::sqrt(static_cast<float>(shape.width)) + 0.25f;
    const std::vector<T> x = random_values<T>(shape.rows * shape.width, 1);
    const Oracle want = oracle(x, shape, scale);
    const std::string fault = on_every_schedule([&] {
      auto y = unwritten<T>(shape.rows * shape.width);
      launch_hadamard<T>(
          {.x = x.data(), .y = y.data(), .rows = shape.rows, .width = shape.width, .scale = scale},
          nullptr);
      return beyond_limit("hadamard.y", y, want);
    });
    if (!fault.empty()) return "width " + std::to_string(shape.width) + ": " + fault;
  }
  return "";
}

std::string check_all() { return first_fault({check_shapes<float>(), check_shapes<bf16>()}); }

TEST(HadamardKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_shapes<float>(), ""); }
TEST(HadamardKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_shapes<bf16>(), ""); }

TEST(HadamardKernel, ReadsUnalignedRowsOneByOne) {
  const std::vector<float> x = random_values<float>(257, 1);
  const std::vector<float> shifted(x.begin() + 1, x.end());
  std::vector<float> y(256);
  launch_hadamard<float>({.x = x.data() + 1, .y = y.data(), .rows = 1, .width = 256, .scale = 1},
                         nullptr);
  EXPECT_EQ(beyond_limit("hadamard.y", y, oracle(shifted, {1, 256}, 1)), "");
}

TEST(HadamardKernel, EveryMutantIsFound) {
  expect_found({HadamardMutant::missing_stage, HadamardMutant::wrong_sign, HadamardMutant::no_scale,
                HadamardMutant::dropped_row},
               check_all);
}

}  // namespace
}  // namespace dsv32::suites
