#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>

#include "src/optimized/kernels/fp8.h"
#include "src/optimized/ops/arguments.h"

/// This header leads from tensors to Params, in the same way for every kernel of the op.
namespace dsv32::optimized {

/// Checks the arguments; returns values as `codes` in `dtype`, not filled.
at::Tensor fp8_dequant_output(const at::Tensor& codes, const at::Tensor& scales,
                              at::ScalarType dtype);
/// Checks the arguments; returns codes as `x` and scales [...,ceil(N/128)], uint8, not filled.
std::tuple<at::Tensor, at::Tensor> fp8_quant_outputs(const at::Tensor& x);

/// `run(params)` takes Fp8DequantParams<float> and <bf16>.
template <typename Run>
at::Tensor run_fp8_dequant(const at::Tensor& codes, const at::Tensor& scales, at::ScalarType dtype,
                           Run run) {
  at::Tensor values = fp8_dequant_output(codes, scales, dtype);
  const at::Tensor code_rows = codes.contiguous(), scale_rows = scales.contiguous();
  const bool is_float = scales.scalar_type() == at::kFloat;
  const int64_t rows = codes.size(-2), columns = codes.size(-1);
  if (values.numel() == 0) return values;
  dispatch_real({"fp8_dequant", "dtype", values}, [&](auto type) {
    using T = decltype(type);
    run(Fp8DequantParams<T>{.codes = pointer<uint8_t>(code_rows),
                            .scales = is_float ? pointer<float>(scale_rows) : nullptr,
                            .exponents = is_float ? nullptr : pointer<uint8_t>(scale_rows),
                            .values = mutable_pointer<T>(values),
                            .batch = values.numel() / (rows * columns),
                            .rows = rows,
                            .columns = columns});
  });
  return values;
}

/// `run(params)` takes Fp8QuantParams<float> and <bf16>.
template <typename Run>
std::tuple<at::Tensor, at::Tensor> run_fp8_quant(const at::Tensor& x, Run run) {
  auto [codes, scales] = fp8_quant_outputs(x);
  const at::Tensor values = x.contiguous();
  if (x.numel() == 0) return {codes, scales};
  dispatch_real({"fp8_quant", "x", x}, [&, &codes = codes, &scales = scales](auto type) {
    using T = decltype(type);
    run(Fp8QuantParams<T>{.values = pointer<T>(values),
                          .codes = mutable_pointer<uint8_t>(codes),
                          .exponents = mutable_pointer<uint8_t>(scales),
                          .rows = x.numel() / x.size(-1),
                          .columns = x.size(-1)});
  });
  return {codes, scales};
}

}  // namespace dsv32::optimized
