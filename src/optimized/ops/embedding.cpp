#include "src/optimized/ops/embedding.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

at::Tensor embedding_backward_output(const at::Tensor& dout, const at::Tensor& ids, int64_t vocab) {
  constexpr const char* op = "embedding_backward";
  const Argument source{op, "dout", dout};
  expect_real(source);
  TORCH_CHECK(dout.dim() == 2, op, ": dout: expected 2 axes, got shape ", dout.sym_sizes());
  expect_dtype({op, "ids", ids}, at::kLong);
  expect_device_of({op, "ids", ids}, source);
  expect_shape({op, "ids", ids}, {dout.sym_size(0)});
  TORCH_CHECK(vocab >= 1, op, ": vocab: expected 1 or more, got ", vocab);
  return at::zeros_symint({vocab, dout.sym_size(1)}, dout.options());
}

namespace {

void schemas(torch::Library& m) {
  m.def("embedding_backward(Tensor dout, Tensor ids, int vocab) -> Tensor dweight");
}

void meta(torch::Library& m) { m.impl("embedding_backward", &embedding_backward_output); }

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
