// The rope kernel in the executor, against float64.

#include "src/optimized/kernels/rope.h"

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized;
using namespace optimized::DSV32_BACKEND;

struct Shape {
  int64_t tokens, heads, width, pairs;
};

// Around a vector of pairs (4 or 8) and a block of threads; with and without lanes behind.
const Shape kShapes[] = {{1, 1, 2, 1},   {3, 2, 8, 4},   {3, 2, 16, 8},   {2, 3, 18, 8},
                         {2, 3, 32, 8},  {5, 1, 7, 3},   {4, 16, 64, 32}, {1, 85, 6, 3},
                         {1, 256, 2, 1}, {257, 1, 2, 1}, {2, 4, 128, 32}, {2, 1, 5, 0}};

template <typename T>
struct Inputs {
  Shape shape;
  bool interleaved, inverse;
  std::vector<T> x;
  std::vector<float> cos, sin;

  Inputs(const Shape& s, bool neighbours, bool backward)
      : shape(s),
        interleaved(neighbours),
        inverse(backward),
        x(random_values<T>(s.tokens * s.heads * s.width, 1)),
        cos(random_values<float>(s.tokens * s.pairs, 2, 2)) {
    for (float& value : cos) {
      sin.push_back(std::sin(value));
      value = std::cos(value);
    }
  }
};

template <typename T>
Oracle oracle(const Inputs<T>& in) {
  const auto [tokens, heads, width, pairs] = in.shape;
  const std::vector<double> x = to_double(in.x);
  Oracle want(tokens * heads * width, true);
  want.value = want.scale = x;  // the lanes behind stay as they are
  for (int64_t row = 0; row < tokens * heads; ++row) {
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t angle = row / heads * pairs + i;
      const double cos = in.cos[angle], sin = in.inverse ? -in.sin[angle] : in.sin[angle];
      const int64_t a = row * width + (in.interleaved ? 2 * i : i);
      const int64_t b = row * width + (in.interleaved ? 2 * i + 1 : i + pairs);
      want.value[a] = x[a] * cos - x[b] * sin;
      want.scale[a] = std::abs(x[a] * cos) + std::abs(x[b] * sin);
      want.value[b] = x[b] * cos + x[a] * sin;
      want.scale[b] = std::abs(x[b] * cos) + std::abs(x[a] * sin);
    }
  }
  return want;
}

template <typename T>
std::string check(const Inputs<T>& in, const Oracle& want) {
  const auto [tokens, heads, width, pairs] = in.shape;
  auto y = unwritten<T>(tokens * heads * width);
  launch_rope<T>({.x = in.x.data(),
                  .cos = in.cos.data(),
                  .sin = in.sin.data(),
                  .y = y.data(),
                  .tokens = tokens,
                  .heads = heads,
                  .width = width,
                  .pairs = pairs,
                  .interleaved = in.interleaved,
                  .inverse = in.inverse},
                 nullptr);
  return beyond_limit("rope.y", y, want);
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    for (const int variant : {0, 1, 2, 3}) {
      const Inputs<T> in(shape, variant % 2 == 0, variant / 2 == 1);
      const Oracle want = oracle(in);
      const std::string fault = on_every_schedule([&] { return check(in, want); });
      if (!fault.empty()) return "width " + std::to_string(shape.width) + ": " + fault;
    }
  }
  return "";
}

std::string check_all() { return first_fault({check_shapes<float>(), check_shapes<bf16>()}); }

TEST(RopeKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_shapes<float>(), ""); }
TEST(RopeKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_shapes<bf16>(), ""); }

TEST(RopeKernel, EveryMutantIsFound) {
  expect_found({RopeMutant::other_pairing, RopeMutant::never_inverse, RopeMutant::angle_of_row,
                RopeMutant::rest_left_out, RopeMutant::dropped_block},
               check_all);
}

}  // namespace
}  // namespace dsv32::suites
