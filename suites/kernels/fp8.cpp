// The FP8 kernels in the executor: bits against formulas in float64.

#include "src/optimized/kernels/fp8.h"

#include <algorithm>

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using namespace optimized;

struct Shape {
  int64_t batch, rows, columns;
};

// Around a block (128) both ways and a load of 8; all 256 codes in a row.
const Shape kShapes[] = {{1, 1, 1}, {2, 3, 256}, {1, 129, 127}, {1, 128, 136}, {2, 130, 257}};

/// What the format says: sign, 4 bits of exponent, 3 of mantissa.
double value_of(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code >= 128 ? -magnitude : magnitude;
}

/// The code nearest to x, of two the one with an even mantissa.
uint8_t code_of(double x) {
  if (std::isnan(x)) return std::signbit(x) ? 0xff : 0x7f;
  const double magnitude = std::min(std::abs(x), 448.0);
  int best = 0;
  for (int code = 1; code < 0x7f; ++code) {
    const double error = std::abs(value_of(code) - magnitude);
    const double least = std::abs(value_of(best) - magnitude);
    if (error < least || (error == least && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

template <typename T>
bool same_or_both_nan(T got, T want) {
  const float a = to_float(got), b = to_float(want);
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&got, &want, sizeof(T)) == 0;
}

template <typename T>
std::string check_dequant(const Shape& s, bool ue8m0) {
  const int64_t count = s.batch * s.rows * s.columns;
  const int64_t down = (s.rows + 127) / 128, across = (s.columns + 127) / 128;
  std::vector<uint8_t> codes(count), exponents(s.batch * down * across);
  for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(i % s.columns);
  const auto scales = random_values<float>(s.batch * down * across, 1);
  std::mt19937_64 engine(2);
  for (uint8_t& e : exponents) e = static_cast<uint8_t>(100 + engine() % 60);
  auto got = unwritten<T>(count);
  launch_fp8_dequant<T>({.codes = codes.data(),
                         .scales = ue8m0 ? nullptr : scales.data(),
                         .exponents = ue8m0 ? exponents.data() : nullptr,
                         .values = got.data(),
                         .batch = s.batch,
                         .rows = s.rows,
                         .columns = s.columns},
                        nullptr);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t matrix = i / (s.rows * s.columns), row = i / s.columns % s.rows;
    const int64_t block = (matrix * down + row / 128) * across + i % s.columns / 128;
    const double scale = ue8m0 ? std::ldexp(1, exponents[block] - 127) : scales[block];
    const auto want = from_float<T>(static_cast<float>(value_of(codes[i]) * scale));
    // a code's sign is that of a zero, too; NaN has one value
    if (!same_or_both_nan(got[i], want) ||
        std::isnan(to_float(got[i])) != (codes[i] % 128 == 127)) {
      return "fp8_dequant[" + std::to_string(i) + "]: other bits";
    }
  }
  return "";
}

template <typename T>
std::vector<T> quant_values(const Shape& s) {
  auto values = random_values<T>(s.rows * s.columns, 3, 5);
  for (size_t i = 0; i < values.size(); i += 7)
    values[i] = from_float<T>(std::ldexp(1.0f, -(i % 20)));
  values[0] = from_float<T>(448.0f);
  return values;
}

template <typename T>
std::string check_quant(const Shape& s) {
  const auto values = quant_values<T>(s);
  const int64_t groups = (s.columns + 127) / 128;
  std::vector<uint8_t> codes(values.size(), 0x55), exponents(s.rows * groups, 0x55);
  launch_fp8_quant<T>({.values = values.data(),
                       .codes = codes.data(),
                       .exponents = exponents.data(),
                       .rows = s.rows,
                       .columns = s.columns},
                      nullptr);
  for (int64_t group = 0; group < s.rows * groups; ++group) {
    const int64_t row = group / groups, first = group % groups * 128;
    const int64_t last = std::min<int64_t>(first + 128, s.columns);
    double highest = kFp8Floor;
    for (int64_t i = first; i < last; ++i) {
      highest = std::max<double>(highest, std::abs(to_float(values[row * s.columns + i])));
    }
    const int exponent = static_cast<int>(std::ceil(std::log2(highest / 448)));
    if (exponents[group] != exponent + 127) return "another scale";
    for (int64_t i = first; i < last; ++i) {
      const double scaled = std::ldexp(to_float(values[row * s.columns + i]), -exponent);
      if (codes[row * s.columns + i] != code_of(scaled)) return "another code";
    }
  }
  return "";
}

template <typename T>
std::string check_shapes() {
  for (const Shape& shape : kShapes) {
    const std::string fault = on_every_schedule([&] {
      return first_fault({check_dequant<T>(shape, false), check_dequant<T>(shape, true),
                          check_quant<T>({1, std::min<int64_t>(shape.rows, 9), shape.columns})});
    });
    if (!fault.empty()) return std::to_string(shape.columns) + " columns: " + fault;
  }
  return "";
}

TEST(Fp8Kernel, BitsAreThoseOfTheFormat) {
  EXPECT_EQ(check_shapes<float>(), "");
  EXPECT_EQ(check_shapes<bf16>(), "");
}

TEST(Fp8Kernel, EveryCodeComesBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = decode_e4m3(static_cast<uint8_t>(code));
    EXPECT_EQ(encode_e4m3(value), code);
    if (code % 128 == 127) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(value, value_of(code));
      EXPECT_EQ(std::signbit(value), code >= 128);
    }
  }
}

TEST(Fp8Kernel, RoundsToTheNearestCode) {
  for (int code = 0; code < 0x7e; ++code) {
    const auto low = static_cast<float>(value_of(code)),
               high = static_cast<float>(value_of(code + 1));
    const float middle = (low + high) / 2;
    for (const float x : {middle, std::nextafter(middle, low), std::nextafter(middle, high)}) {
      EXPECT_EQ(encode_e4m3(x), code_of(x)) << x;
      EXPECT_EQ(encode_e4m3(-x), code_of(-x)) << x;
    }
  }
}

TEST(Fp8Kernel, ScalesOfUe8m0) {
  for (int b = 0; b < 255; ++b) {
    EXPECT_EQ(decode_ue8m0(static_cast<uint8_t>(b)), std::ldexp(1.0, b - 127));
  }
  EXPECT_TRUE(std::isnan(decode_ue8m0(255)));
  const float above = std::nextafter(448.0f, 500.0f);
  EXPECT_EQ(fp8_scale_of(448.0f), 127);
  EXPECT_EQ(fp8_scale_of(above), 128);
}

TEST(Fp8Kernel, KeepsNanAndClampsInfinity) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> values = {std::numeric_limits<float>::quiet_NaN(), -infinity, 1.0f};
  std::vector<uint8_t> codes(3), exponents(1);
  launch_fp8_quant<float>({.values = values.data(),
                           .codes = codes.data(),
                           .exponents = exponents.data(),
                           .rows = 1,
                           .columns = 3},
                          nullptr);
  EXPECT_EQ(codes, (std::vector<uint8_t>{0x7f, 0xfe, 0}));
}

TEST(Fp8Kernel, EveryMutantIsFound) {
  using enum Fp8Mutant;
  expect_found({wrong_tail, row_scale, no_subnormals, truncated, loose_scale, stale_group},
               check_shapes<float>);
}

}  // namespace
}  // namespace dsv32::suites
