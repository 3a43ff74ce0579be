// Host tensors: conversions for every 16-bit pattern, rounding ties, shapes, views.

#include "src/model/tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "src/model/errors.h"

namespace dsv32 {
namespace {

constexpr int kPatterns = 65536;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A 16-bit format by its definition, without bit tricks.
struct Format {
  int mantissa_bits;
  int bias;
  uint16_t (*encode)(float);
  float (*decode)(uint16_t);
  uint16_t infinity;
};

const std::vector<Format> kFormats = {
    {7, 127, float_to_bfloat16, bfloat16_to_float, 0x7f80},
    {10, 15, float_to_float16, float16_to_float, 0x7c00},
};

double by_definition(const Format& format, uint16_t bits) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = (bits & 0x7fff) >> format.mantissa_bits;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  if ((bits & 0x7fff) >= format.infinity) return mantissa == 0 ? sign * kInfinity : std::nan("");
  const int whole = exponent == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
  return sign * std::ldexp(whole, std::max(exponent, 1) - format.bias - format.mantissa_bits);
}

TEST(SelfTensor, SixteenBitPatternsDecodeByDefinition) {
  for (const Format& format : kFormats) {
    for (int i = 0; i < kPatterns; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      const double wanted = by_definition(format, bits);
      const double got = format.decode(bits);
      if (std::isnan(wanted)) {
        ASSERT_TRUE(std::isnan(got)) << i;
      } else {
        ASSERT_EQ(got, wanted) << i;
        ASSERT_EQ(std::signbit(got), std::signbit(wanted)) << i;
      }
    }
  }
}

TEST(SelfTensor, SixteenBitPatternsSurviveTheRoundTrip) {
  for (const Format& format : kFormats) {
    for (int i = 0; i < kPatterns; ++i) {
      const auto bits = static_cast<uint16_t>(i);
      const float wide = format.decode(bits);
      if (std::isnan(wide)) {
        ASSERT_TRUE(std::isnan(format.decode(format.encode(wide)))) << i;
      } else {
        ASSERT_EQ(format.encode(wide), bits) << i;
      }
    }
  }
}

TEST(SelfTensor, TiesGoToTheEvenNeighbour) {
  for (const Format& format : kFormats) {
    for (uint16_t low = 0; low + 1 < format.infinity; ++low) {
      const auto high = static_cast<uint16_t>(low + 1);
      // Exact in float: one more bit than the format has.
      const auto tie = static_cast<float>((double{format.decode(low)} + format.decode(high)) / 2);
      const uint16_t even = low % 2 == 0 ? low : high;
      ASSERT_EQ(format.encode(tie), even) << low;
      ASSERT_EQ(format.encode(-tie), even | 0x8000) << low;
      ASSERT_EQ(format.encode(std::nextafter(tie, 0.0F)), low) << low;
      ASSERT_EQ(format.encode(std::nextafter(tie, INFINITY)), high) << low;
    }
  }
}

TEST(SelfTensor, OverflowBecomesInfinity) {
  EXPECT_EQ(float_to_float16(65519.996F), 0x7bff);
  EXPECT_EQ(float_to_float16(65520.0F), 0x7c00);
  EXPECT_EQ(float_to_float16(-1e30F), 0xfc00);
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(float_to_bfloat16(-INFINITY), 0xff80);
}

TEST(SelfTensor, NanWithALowPayloadStaysNan) {
  for (const uint32_t bits : {0x7f800001U, 0xff800001U, 0x7fbfffffU}) {
    const auto nan = std::bit_cast<float>(bits);
    for (const Format& format : kFormats) {
      EXPECT_TRUE(std::isnan(format.decode(format.encode(nan)))) << bits;
    }
  }
}

TEST(SelfTensor, DoublesAreRoundedOnce) {
  // Just above a tie: rounding to float first would land on the tie and go down.
  const std::vector<double> values = {1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-11 + 0x1p-40};
  const HostTensor wide = HostTensor::from_doubles(DType::float64, {2}, values);
  EXPECT_EQ(wide.cast(DType::bfloat16).at(0), 1 + 0x1p-7);
  EXPECT_EQ(wide.cast(DType::float16).at(1), 1 + 0x1p-10);
  const double huge = 1e300;
  EXPECT_EQ(HostTensor::from_doubles(DType::bfloat16, {1}, {&huge, 1}).at(0), kInfinity);
}

TEST(SelfTensor, EveryPairOfTypesKeepsSmallIntegers) {
  const std::vector<double> values = {0, 1, 2, 100, 255};
  for (const DType from : {DType::float64, DType::float32, DType::bfloat16, DType::float16,
                           DType::int64, DType::int32, DType::uint8}) {
    const HostTensor tensor = HostTensor::from_doubles(from, {5}, values);
    EXPECT_EQ(tensor.bytes(), 5 * item_size(from));
    EXPECT_EQ(parse_dtype(to_string(from)), from);
    for (const DType to : {DType::float64, DType::float32, DType::bfloat16, DType::float16,
                           DType::int64, DType::int32, DType::uint8}) {
      EXPECT_EQ(tensor.cast(to).to_doubles(), values) << to_string(from) << to_string(to);
    }
  }
}

TEST(SelfTensor, IntegersRoundToEvenAndNeverWrap) {
  const std::vector<double> values = {0.5, 1.5, 2.5};
  EXPECT_EQ(HostTensor::from_doubles(DType::int32, {3}, values).to_doubles(),
            (std::vector<double>{0, 2, 2}));
  for (const double value : {std::nan(""), 256.0, -1.0, kInfinity}) {
    EXPECT_THROW(HostTensor::from_doubles(DType::uint8, {1}, {&value, 1}), Error) << value;
  }
  const double beyond = 0x1p63;
  EXPECT_THROW(HostTensor::from_doubles(DType::int64, {1}, {&beyond, 1}), Error);
}

TEST(SelfTensor, IsZeroFilledAndAligned) {
  // 2^20 floats and more are mapped, not taken from the heap.
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{17}, (int64_t{1} << 20) + 1}) {
    const HostTensor tensor(DType::float32, {size});
    EXPECT_TRUE(tensor.defined());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.raw()) % 64, 0U);
    for (const float value : tensor.data<float>()) ASSERT_EQ(value, 0.0F);
  }
}

TEST(SelfTensor, CopiesShareTheData) {
  HostTensor a(DType::float32, {2});
  const HostTensor b = a;
  a.data<float>()[1] = 3;
  EXPECT_EQ(b.at(1), 3);
  EXPECT_TRUE(a.identical(b));
}

TEST(SelfTensor, IdenticalComparesTypeShapeAndBits) {
  const HostTensor zero = HostTensor::from_doubles(DType::float32, {1}, std::vector{0.0});
  const HostTensor minus = HostTensor::from_doubles(DType::float32, {1}, std::vector{-0.0});
  EXPECT_FALSE(zero.identical(minus));
  EXPECT_FALSE(zero.identical(HostTensor(DType::int32, {1})));
  EXPECT_FALSE(zero.identical(HostTensor(DType::float32, {1, 1})));
  EXPECT_FALSE(zero.identical(HostTensor()));
  EXPECT_TRUE(zero.identical(HostTensor(DType::float32, {1})));
}

TEST(SelfTensor, ViewsOfAnotherTypeAreRefused) {
  const HostTensor tensor(DType::bfloat16, {1});
  EXPECT_NO_THROW(tensor.data<uint16_t>());
  EXPECT_THROW(tensor.data<float>(), Error);
  EXPECT_THROW(tensor.at(1), Error);
  EXPECT_THROW(tensor.at(-1), Error);
}

TEST(SelfTensor, ShapesThatOverflowAreRefused) {
  EXPECT_EQ(numel({}), 1);
  EXPECT_EQ(numel({3, 0, 5}), 0);
  EXPECT_EQ(to_string(Shape{2, 32, 64}), "[2,32,64]");
  EXPECT_THROW(numel({-1}), Error);
  EXPECT_THROW(numel({int64_t{1} << 32, int64_t{1} << 31}), Error);
  EXPECT_THROW(HostTensor(DType::float64, {int64_t{1} << 61}), Error);
}

TEST(SelfTensor, RoundingFloorIsTheRelativeErrorOfOneRounding) {
  // Root mean square relative error over 2^16 values spread evenly in the logarithm.
  const auto measured = [](DType dtype) {
    double error = 0;
    double total = 0;
    for (int i = 0; i < kPatterns; ++i) {
      const double x = std::exp2(i / double{kPatterns});
      const double rounded = HostTensor::from_doubles(dtype, {1}, {&x, 1}).at(0);
      error += (rounded - x) * (rounded - x) / (x * x);
      total += 1;
    }
    return std::sqrt(error / total);
  };
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    // To a twentieth: the floors are written with two or three digits.
    EXPECT_EQ(std::lround(10 * measured(dtype) / rounding_floor(dtype)), 10) << to_string(dtype);
  }
  EXPECT_EQ(epsilon(DType::bfloat16), 0x1p-7);
  EXPECT_EQ(epsilon(DType::float16), 0x1p-10);
  EXPECT_EQ(epsilon(DType::float32), std::numeric_limits<float>::epsilon());
  EXPECT_EQ(epsilon(DType::float64), std::numeric_limits<double>::epsilon());
}

TEST(SelfTensor, UlpIsTheDistanceToTheNextNumber) {
  EXPECT_EQ(ulp_at(1.0, DType::float32), 0x1p-23);
  EXPECT_EQ(ulp_at(-1.99, DType::float32), 0x1p-23);
  EXPECT_EQ(ulp_at(2.0, DType::bfloat16), 0x1p-6);
  EXPECT_EQ(ulp_at(0.75, DType::float64), 0x1p-53);
  EXPECT_EQ(ulp_at(1e-30, DType::float16), 0x1p-24);
}

TEST(SelfTensor, UnknownTypeNamesTheKnownOnes) {
  try {
    parse_dtype("float8");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("bfloat16"), std::string::npos);
  }
}

}  // namespace
}  // namespace dsv32
