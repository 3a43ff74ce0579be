// FP8 to the bit: codes, scales, the synthetic FP8 weights of docs/formats.md 7.

#include "src/model/fp8.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "src/io/io.h"
#include "src/model/weights.h"

namespace dsv32::suites {
namespace {

TEST(SelfFp8, EveryCodeComesBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_float(static_cast<uint8_t>(code));
    if (!std::isnan(value)) EXPECT_EQ(float_to_e4m3(value), code);
    EXPECT_EQ(std::isnan(value), (code & 0x7f) == 0x7f) << code;
  }
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0x08), 0x1p-6f);
  EXPECT_EQ(e4m3_to_float(0x38), 1.0f);
  EXPECT_EQ(e4m3_to_float(0xfe), -448.0f);
}

TEST(SelfFp8, RoundsToTheNearestCodeTiesToEven) {
  for (int code = 0; code < 0x7e; ++code) {
    const float low = e4m3_to_float(static_cast<uint8_t>(code));
    const float high = e4m3_to_float(static_cast<uint8_t>(code + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(float_to_e4m3(middle), code % 2 == 0 ? code : code + 1) << code;
    EXPECT_EQ(float_to_e4m3(std::nextafter(middle, low)), code);
    EXPECT_EQ(float_to_e4m3(-std::nextafter(middle, high)), (code + 1) | 0x80);
  }
  EXPECT_EQ(float_to_e4m3(1e30f), 0x7e);
  EXPECT_EQ(float_to_e4m3(-std::numeric_limits<float>::infinity()), 0xfe);
}

TEST(SelfFp8, PowersOfTwo) {
  EXPECT_EQ(power_of_two_above(1.0f), 1.0f);
  EXPECT_EQ(power_of_two_above(std::nextafter(1.0f, 2.0f)), 2.0f);
  EXPECT_EQ(power_of_two_above(std::nextafter(1.0f, 0.0f)), 1.0f);
  EXPECT_EQ(e8m0_to_float(0), 0x1p-127f);
  EXPECT_EQ(e8m0_to_float(127), 1.0f);
  EXPECT_TRUE(std::isnan(e8m0_to_float(255)));
}

TEST(SelfFp8, ABlockHasTheScaleOfItsLargestValue) {
  HostTensor matrix(DType::float32, {3, 5});
  const auto values = matrix.data<float>();
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i) - 7;
  const Fp8Matrix q = quantized(matrix, {.block_rows = 2, .block_columns = 4, .scale_fmt = ""});
  EXPECT_EQ(q.scales.shape(), (Shape{2, 2}));
  EXPECT_EQ(q.scales.to_doubles(),
            (std::vector<double>{7.0f / 448, 3.0f / 448, 6.0f / 448, 7.0f / 448}));
  EXPECT_EQ(q.codes.at(0), 0xfe);
  HostTensor zeros(DType::float32, {1, 2});
  EXPECT_EQ(quantized(zeros, {}).scales.at(0), 1);
  const Fp8Matrix powers = quantized(matrix, {.block_rows = 2, .block_columns = 4});
  EXPECT_EQ(powers.scales.at(0), 0x1p-6);
}

struct Vector {
  const char* case_name;
  WeightSpec spec;
  float first, last;
  const char* sha256;
};

/// Made by golden/dump/dsv32_trace.py, which shares no code with src/.
const Vector kVectors[] = {
    {"tiny-fp8",
     {"model.layers.1.self_attn.kv_a_proj_with_mqa.weight", {36, 96}},
     -0.015171595849096775f,
     -0.007672990672290325f,
     "26c757fb684762bf"},
    {"tiny-fp8",
     {"model.layers.1.mlp.experts.0.down_proj.weight", {96, 40}},
     -0.0217633917927742f,
     -0.6383928656578064f,
     "cc994ea022680b2c"},
    {"tiny-fp8", {"model.norm.weight", {96}}, 1.046875f, 0.8125f, "389901ce51bd1d7d"},
    {"small-fp8",
     {"model.layers.1.self_attn.kv_a_proj_with_mqa.weight", {192, 1024}},
     -0.00390625f,
     -0.001953125f,
     "37fb9f012cbb59dd"},
    {"small-fp8",
     {"model.layers.1.mlp.experts.0.down_proj.weight", {1024, 512}},
     -0.00537109375f,
     0.01953125f,
     "887d27136b4ce0a6"},
};

TEST(SelfFp8, SyntheticWeightsMatchTheTestVectors) {
  for (const Vector& vector : kVectors) {
    SCOPED_TRACE(vector.spec.name);
    const SyntheticWeights weights(io::find_case(vector.case_name));
    const HostTensor tensor = weights.load(vector.spec);
    EXPECT_EQ(tensor.at(0), vector.first);
    EXPECT_EQ(tensor.at(tensor.numel() - 1), vector.last);
    EXPECT_EQ(io::sha256_hex(tensor.raw(), static_cast<size_t>(tensor.bytes())).substr(0, 16),
              vector.sha256);
    EXPECT_EQ(weights.load_fp8(vector.spec).has_value(), is_fp8_weight(vector.spec.name));
  }
}

TEST(SelfFp8, RowsAreThoseOfTheWholeMatrix) {
  const SyntheticWeights weights(io::find_case("tiny-fp8"));
  const WeightSpec spec{"model.layers.0.self_attn.q_a_proj.weight", {44, 96}};
  const HostTensor whole = weights.load(spec);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {15, 17}, {33, 44}, {9, 9}}) {
    const HostTensor rows = weights.load_rows(spec, begin, end);
    for (int64_t i = 0; i < rows.numel(); ++i) ASSERT_EQ(rows.at(i), whole.at(begin * 96 + i));
  }
  EXPECT_EQ(weights.identity(), "synthetic-fp8:1");
  // Neighbouring blocks have scales of their own along both axes.
  const HostTensor scales = weights.load_fp8(spec)->scales;
  for (int64_t i = 0; i + 1 < 6; ++i) {
    EXPECT_NE(std::ilogb(scales.at(i)), std::ilogb(scales.at(i + 1))) << i;
    EXPECT_NE(std::ilogb(scales.at(i)), std::ilogb(scales.at(i + 6))) << i;
  }
}

}  // namespace
}  // namespace dsv32::suites
