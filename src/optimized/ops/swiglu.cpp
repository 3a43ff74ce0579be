#include "src/optimized/ops/swiglu.h"

#include "src/optimized/ops/registry.h"

namespace dsv32::optimized {

at::Tensor swiglu_output(const at::Tensor& gate, const at::Tensor& up) {
  constexpr const char* op = "swiglu";
  const Argument source{op, "gate", gate};
  expect_real(source);
  expect_like({op, "up", up}, source);
  expect_shape({op, "up", up}, gate.sym_sizes());
  return empty_as(gate, gate.sym_sizes(), gate.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> swiglu_gradients(const at::Tensor& dy, const at::Tensor& gate,
                                                    const at::Tensor& up) {
  constexpr const char* op = "swiglu_backward";
  const Argument source{op, "gate", gate};
  expect_real(source);
  for (const Argument& other : {Argument{op, "dy", dy}, Argument{op, "up", up}}) {
    expect_like(other, source);
    expect_shape(other, gate.sym_sizes());
  }
  return {empty_as(gate, gate.sym_sizes(), gate.scalar_type()),
          empty_as(gate, gate.sym_sizes(), gate.scalar_type())};
}

namespace {

void schemas(torch::Library& m) {
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor dy, Tensor gate, Tensor up) -> (Tensor dgate, Tensor dup)");
}

void meta(torch::Library& m) {
  m.impl("swiglu", &swiglu_output);
  m.impl("swiglu_backward", &swiglu_gradients);
}

}  // namespace

DSV32_OPS(schemas, meta)

}  // namespace dsv32::optimized
