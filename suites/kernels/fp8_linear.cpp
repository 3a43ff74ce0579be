// The kernels of fp8 mode's linear layers in the executor: bits of codes and scales against the
// formula, products against float64.

#include "src/optimized/kernels/fp8_linear.h"

#include <algorithm>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized;
using namespace optimized::DSV32_BACKEND;

struct Shape {
  int64_t rows, outs, inner, block_rows, run;
};

// Around a tile (16), a warp (32) and a block; runs that no tile divides, and one longer than all.
const Shape kShapes[] = {{1, 1, 1, 128, 128},     {3, 17, 40, 16, 16},     {17, 33, 96, 16, 20},
                         {2, 130, 257, 128, 128}, {16, 16, 128, 128, 128}, {1, 5, 31, 8, 40}};

/// The first run is tiny, the others have sizes of their own.
template <typename T>
std::vector<T> inputs(const Shape& s) {
  auto values = random_values<T>(s.rows * s.inner, 1);
  for (int64_t i = 0; i < s.rows * s.inner; ++i) {
    const int64_t run = i % s.inner / s.run;
    const float size = run == 0 && i / s.inner % 2 == 1 ? 1e-6f : std::ldexp(1.0f, run % 5 * 3);
    values[i] = from_float<T>(to_float(values[i]) * size);
  }
  return values;
}

template <typename T>
std::string check_quant(const Shape& s, bool powers) {
  const auto values = inputs<T>(s);
  const int64_t runs = (s.inner + s.run - 1) / s.run;
  std::vector<uint8_t> codes(values.size(), 0x55);
  auto scales = unwritten<float>(s.rows * runs);
  launch_fp8_quant_runs<T>({.values = values.data(),
                            .codes = codes.data(),
                            .scales = scales.data(),
                            .rows = s.rows,
                            .columns = s.inner,
                            .run = s.run,
                            .powers = powers},
                           nullptr);
  for (int64_t index = 0; index < s.rows * runs; ++index) {
    const int64_t start = index / runs * s.inner, first = index % runs * s.run;
    const int64_t last = std::min(first + s.run, s.inner);
    float highest = 1e-4f;
    for (int64_t i = first; i < last; ++i)
      highest = std::max(highest, std::abs(to_float(values[start + i])));
    float want = highest * static_cast<float>(1.0 / 448);
    if (powers) want = static_cast<float>(std::exp2(std::ceil(std::log2(double{want}))));
    if (scales[index] != want) return "another scale";
    for (int64_t i = first; i < last; ++i)
      if (codes[start + i] != encode_e4m3(to_float(values[start + i]) / want))
        return "another code";
  }
  return "";
}

struct Product {
  std::vector<uint8_t> x, w;
  std::vector<float> x_scales, w_scales;

  explicit Product(const Shape& s) : x(s.rows * s.inner), w(s.outs * s.inner) {
    const int64_t runs = (s.inner + s.run - 1) / s.run;
    std::mt19937_64 engine(2);
    const auto fill = [&](std::vector<uint8_t>& codes) {
      for (uint8_t& code : codes)
        code = static_cast<uint8_t>((engine() % 0x7f) | (engine() % 2 << 7));
    };
    fill(x);
    fill(w);
    for (int64_t i = 0; i < s.rows * runs; ++i) x_scales.push_back(0.5f + 0.25f * (i % 7));
    const int64_t blocks = (s.outs + s.block_rows - 1) / s.block_rows * runs;
    for (int64_t i = 0; i < blocks; ++i) w_scales.push_back(std::ldexp(1.1f, i * 3 % 5 - 3));
  }
};

Oracle oracle(const Product& p, const Shape& s) {
  const int64_t runs = (s.inner + s.run - 1) / s.run;
  Oracle want(s.rows * s.outs, true);
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t out = 0; out < s.outs; ++out) {
      const int64_t at = row * s.outs + out;
      for (int64_t i = 0; i < s.inner; ++i) {
        const int64_t r = i / s.run;
        const double term = double{decode_e4m3(p.x[row * s.inner + i])} *
                            decode_e4m3(p.w[out * s.inner + i]) * p.x_scales[row * runs + r] *
                            p.w_scales[out / s.block_rows * runs + r];
        want.value[at] += term;
        want.scale[at] += std::abs(term);
      }
    }
  }
  return want;
}

std::string check_product(const Shape& s) {
  const Product p(s);
  auto y = unwritten<bf16>(s.rows * s.outs);
  launch_fp8_linear({.x = p.x.data(),
                     .x_scales = p.x_scales.data(),
                     .w = p.w.data(),
                     .w_scales = p.w_scales.data(),
                     .y = y.data(),
                     .rows = s.rows,
                     .outs = s.outs,
                     .inner = s.inner,
                     .block_rows = s.block_rows,
                     .run = s.run},
                    nullptr);
  return beyond_limit("fp8_linear.y", y, oracle(p, s));
}

std::string check_shapes() {
  for (const Shape& s : kShapes) {
    const std::string fault = on_every_schedule([&] {
      return first_fault({check_quant<float>(s, false), check_quant<bf16>(s, true),
                          check_quant<bf16>(s, false), check_product(s)});
    });
    if (!fault.empty()) return std::to_string(s.inner) + " columns: " + fault;
  }
  return "";
}

TEST(Fp8LinearKernel, CodesScalesAndProductsAreRight) { EXPECT_EQ(check_shapes(), ""); }

TEST(Fp8LinearKernel, PowersOfTwoAreTheirOwnScale) {
  EXPECT_EQ(fp8_run_scale(448.0f, true), 1.0f);
  EXPECT_EQ(fp8_run_scale(std::nextafter(448.0f, 500.0f), true), 2.0f);
  EXPECT_EQ(fp8_run_scale(3.0f, false), 3.0f * static_cast<float>(1.0 / 448));
}

TEST(Fp8LinearKernel, EveryMutantIsFound) {
  using enum Fp8LinearMutant;
  expect_found(
      {no_floor, scale_below, wrong_tail, first_scale, row_scale, run_too_long, input_unscaled},
      check_shapes);
}

}  // namespace
}  // namespace dsv32::suites
