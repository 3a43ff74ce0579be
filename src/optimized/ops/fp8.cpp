#include "src/optimized/ops/fp8.h"

#include <vector>

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {
namespace {

c10::SymInt blocks_of(const c10::SymInt& size) { return (size + (kFp8Block - 1)) / kFp8Block; }

}  // namespace

at::Tensor fp8_dequant_output(const at::Tensor& codes, const at::Tensor& scales,
                              at::ScalarType dtype) {
  constexpr const char* op = "fp8_dequant";
  const Argument source{op, "codes", codes};
  expect_dtype(source, at::kByte);
  expect_rank_from(source, 2);
  const at::ScalarType own = scales.scalar_type();
  TORCH_CHECK(own == at::kFloat || own == at::kByte, op, ": scales: expected Float or Byte, got ",
              own);
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16, op,
              ": dtype: expected float32 or bfloat16, got ", dtype);
  expect_device_of({op, "scales", scales}, source);
  std::vector<c10::SymInt> blocks = codes.sym_sizes().vec();
  for (size_t axis = blocks.size() - 2; axis < blocks.size(); ++axis) {
    blocks[axis] = blocks_of(blocks[axis]);
  }
  expect_shape({op, "scales", scales}, blocks);
  return empty_as(codes, codes.sym_sizes(), dtype);
}

std::tuple<at::Tensor, at::Tensor> fp8_quant_outputs(const at::Tensor& x) {
  const Argument source{"fp8_quant", "x", x};
  expect_real(source);
  expect_rank_from(source, 1);
  std::vector<c10::SymInt> groups = x.sym_sizes().vec();
  groups.back() = blocks_of(groups.back());
  return {empty_as(x, x.sym_sizes(), at::kByte), empty_as(x, groups, at::kByte)};
}

namespace {

void schemas(torch::Library& m) {
  m.def("fp8_dequant(Tensor codes, Tensor scales, ScalarType dtype) -> Tensor");
  m.def("fp8_quant(Tensor x) -> (Tensor codes, Tensor scales)");
}

void meta(torch::Library& m) {
  m.impl("fp8_dequant", &fp8_dequant_output);
  m.impl("fp8_quant", &fp8_quant_outputs);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
