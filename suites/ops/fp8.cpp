// fp8_dequant and fp8_quant through the dispatcher, bit for bit against torch's float8 types.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

const std::vector<std::vector<int64_t>> kShapes = {{1, 1},        {2, 256},      {129, 127},
                                                   {3, 128, 136}, {2, 130, 257}, {0, 5}};

int64_t blocks(int64_t size) { return (size + 127) / 128; }

class Fp8Op : public OpTest {
 protected:
  at::Device device() const { return GetParam().device; }
  /// Every code, again and again.
  at::Tensor codes(const std::vector<int64_t>& shape) const {
    return at::arange(c10::multiply_integers(shape)).to(at::kByte).view(shape).to(device());
  }
  at::Tensor scales(std::vector<int64_t> shape, bool ue8m0) const {
    for (size_t axis = shape.size() - 2; axis < shape.size(); ++axis) {
      shape[axis] = blocks(shape[axis]);
    }
    const at::Tensor normal = random(shape, at::kFloat, 1);
    return ue8m0 ? (normal * 10 + 127).to(at::kByte) : normal;
  }
  at::Tensor dequant(const at::Tensor& c, const at::Tensor& s, at::ScalarType dtype) const {
    return call("fp8_dequant", {c, s, dtype})[0];
  }
};

/// Each scale over its block.
at::Tensor spread(const at::Tensor& scales, const at::Tensor& like) {
  return scales.repeat_interleave(128, -1)
      .repeat_interleave(128, -2)
      .narrow(-1, 0, like.size(-1))
      .narrow(-2, 0, like.size(-2));
}

void expect_equal_or_nan(const at::Tensor& got, const at::Tensor& want) {
  ASSERT_EQ(got.scalar_type(), want.scalar_type());
  EXPECT_TRUE(at::equal(got.isnan(), want.isnan()));
  expect_same_bits(got.nan_to_num(0), want.nan_to_num(0));
}

TEST_P(Fp8Op, DequantHasTheBitsOfTorch) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      for (const bool ue8m0 : {false, true}) {
        const at::Tensor c = codes(shape), s = scales(shape, ue8m0);
        const at::Tensor values = c.cpu().view(at::kFloat8_e4m3fn).to(at::kFloat);
        const at::Tensor factors =
            ue8m0 ? at::exp2(s.cpu().to(at::kDouble) - 127).to(at::kFloat) : s.cpu();
        const at::Tensor want = values.numel() == 0 ? values : values * spread(factors, values);
        expect_equal_or_nan(dequant(c, s, dtype).cpu(), want.to(dtype));
      }
    }
  }
}

TEST_P(Fp8Op, QuantHasTheBitsOfTorch) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& shape : kShapes) {
      const at::Tensor x = random(shape, dtype, 2, 30);
      const auto got = call("fp8_quant", {x});
      ASSERT_EQ(got[1].size(-1), blocks(shape.back()));
      if (x.numel() == 0) continue;
      const int64_t padding = blocks(shape.back()) * 128 - shape.back();
      const at::Tensor padded = at::constant_pad_nd(x.cpu().to(at::kFloat), {0, padding});
      const at::Tensor highest =
          std::get<0>(padded.unflatten(-1, {-1, 128}).abs().max(-1)).clamp_min(1e-4f);
      const at::Tensor exponent = at::ceil(at::log2(highest.to(at::kDouble) / 448));
      expect_same_bits(got[1].cpu(), (exponent + 127).to(at::kByte));
      const at::Tensor scale = at::exp2(exponent).to(at::kFloat).repeat_interleave(128, -1);
      const at::Tensor scaled = (padded / scale).narrow(-1, 0, shape.back()).clamp(-448, 448);
      expect_same_bits(got[0].cpu(), scaled.to(at::kFloat8_e4m3fn).view(at::kByte));
    }
  }
}

TEST_P(Fp8Op, TakesInputsThatAreNotContiguous) {
  const at::Tensor c = codes({130, 140}), s = scales({130, 140}, false);
  expect_equal_or_nan(dequant(strided(c), strided(s), at::kFloat).cpu(),
                      dequant(c, s, at::kFloat).cpu());
  const at::Tensor x = random({3, 140}, at::kFloat, 3);
  const auto want = call("fp8_quant", {x}), got = call("fp8_quant", {strided(x)});
  for (size_t i = 0; i < want.size(); ++i) expect_same_bits(got[i], want[i]);
}

TEST_P(Fp8Op, GivesTheSameBitsOnEveryRun) {
  const at::Tensor x = random({300, 200}, at::kFloat, 4);
  expect_deterministic([&] { return call("fp8_quant", {x}); });
}

TEST_P(Fp8Op, RefusesBadInput) {
  const at::Tensor c = codes({130, 140}), s = scales({130, 140}, false);
  expect_refused("fp8_dequant: codes: expected Byte, got Float", "fp8_dequant", {s, s, at::kFloat});
  expect_refused("fp8_dequant: codes: expected 2 axes or more, got shape [140]", "fp8_dequant",
                 {c[0], s, at::kFloat});
  expect_refused("fp8_dequant: scales: expected Float or Byte, got Double", "fp8_dequant",
                 {c, s.to(at::kDouble), at::kFloat});
  expect_refused("fp8_dequant: scales: expected shape [2, 2], got [2, 1]", "fp8_dequant",
                 {c, s.narrow(1, 0, 1), at::kFloat});
  expect_refused("fp8_dequant: dtype: expected float32 or bfloat16, got Half", "fp8_dequant",
                 {c, s, at::kHalf});
  expect_refused("fp8_quant: x: expected float32 or bfloat16, got Byte", "fp8_quant", {c});
}

DSV32_ON_EVERY_BACKEND(Fp8Op);

}  // namespace
}  // namespace dsv32::suites
