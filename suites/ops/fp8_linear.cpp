// fp8_quant_runs and fp8_linear through the dispatcher: bits against torch's float8 type, products
// against float64.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

class Fp8LinearOp : public OpTest {
 protected:
  std::vector<at::Tensor> quant(const at::Tensor& x, int64_t run, bool powers) const {
    return call("fp8_quant_runs", {x, run, powers});
  }
};

TEST_P(Fp8LinearOp, QuantHasTheBitsOfTorch) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [width, run] : {std::pair<int64_t, int64_t>{5, 128}, {257, 128}, {40, 16}}) {
      for (const bool powers : {false, true}) {
        const at::Tensor x = random({3, width}, dtype, 2, 30);
        const auto got = quant(x, run, powers);
        const int64_t runs = (width + run - 1) / run;
        const at::Tensor padded =
            at::constant_pad_nd(x.cpu().to(at::kFloat), {0, runs * run - width});
        at::Tensor scale =
            std::get<0>(padded.unflatten(-1, {runs, run}).abs().max(-1)).clamp_min(1e-4f) *
            static_cast<float>(1.0 / 448);
        if (powers) scale = at::exp2(at::ceil(at::log2(scale.to(at::kDouble)))).to(at::kFloat);
        expect_same_bits(got[1].cpu(), scale);
        const at::Tensor scaled = (padded / scale.repeat_interleave(run, -1)).narrow(-1, 0, width);
        expect_same_bits(got[0].cpu(),
                         scaled.clamp(-448, 448).to(at::kFloat8_e4m3fn).view(at::kByte));
      }
    }
  }
}

TEST_P(Fp8LinearOp, ProductIsThatOfTheValues) {
  const at::Tensor x = random({2, 9, 40}, at::kBFloat16, 3), w = random({37, 40}, at::kFloat, 4);
  const auto qx = quant(x, 16, true);
  const auto qw = quant(w, 16, false);
  const at::Tensor blocks = qw[1].narrow(0, 0, 3).contiguous();  // of 16 rows each
  const at::Tensor y =
      call("fp8_linear", {qx[0], qx[1], qw[0], blocks, int64_t{16}, int64_t{16}})[0];
  const auto values = [](const at::Tensor& codes) {
    return codes.cpu().view(at::kFloat8_e4m3fn).to(at::kDouble);
  };
  const at::Tensor left =
      values(qx[0]) * qx[1].cpu().repeat_interleave(16, -1).narrow(-1, 0, 40).to(at::kDouble);
  const at::Tensor spread = blocks.cpu().repeat_interleave(16, 0).narrow(0, 0, 37);
  const at::Tensor right =
      values(qw[0]) * spread.repeat_interleave(16, -1).narrow(-1, 0, 40).to(at::kDouble);
  expect_close("fp8_linear.y", y, at::matmul(left, right.t()),
               at::matmul(left.abs(), right.abs().t()));
}

TEST_P(Fp8LinearOp, RefusesBadInput) {
  const at::Tensor x = random({2, 40}, at::kBFloat16, 3);
  const auto q = quant(x, 16, true);
  expect_refused("fp8_quant_runs: x: expected float32 or bfloat16, got Byte", "fp8_quant_runs",
                 {q[0], int64_t{16}, true});
  expect_refused("fp8_quant_runs: run: expected 1 or more, got 0", "fp8_quant_runs",
                 {x, int64_t{0}, true});
  expect_refused("fp8_linear: x: expected Byte, got BFloat16", "fp8_linear",
                 {x, q[1], q[0], q[1], int64_t{16}, int64_t{16}});
  expect_refused("fp8_linear: w_scales: expected shape [1, 3], got [2, 3]", "fp8_linear",
                 {q[0], q[1], q[0], q[1], int64_t{16}, int64_t{16}});
}

DSV32_ON_EVERY_BACKEND(Fp8LinearOp);

}  // namespace
}  // namespace dsv32::suites
