#pragma once

#include "src/bridge/libtorch.h"
#include "src/model/dialect.h"
#include "src/model/summation.h"

/// Every sum of the reference, in the order that a run asks for. float64 runs (the oracle) always
/// take torch's kernels: their order is far below what is judged.
namespace dsv32::reference {

using torch::Tensor;

/// How a product is computed.
struct Sums {
  Summation order = Summation::blocked;
  Operands operands = Operands::exact;
  bool result_too = false;  // the product is rounded to the type of the operands
};

/// The value as an operand of that kind, in the dtype that it has; its gradient passes unrounded.
Tensor as_operand(const Tensor& x, Operands operands);
/// a [..,n,k] times b [..,k,m]; batch axes broadcast. Differentiable, the backward products in the
/// same order.
Tensor product(const Sums& sums, const Tensor& a, const Tensor& b);
/// x [..,in] times weight [out,in]^T, which may be float32 where x is float64 (not differentiable
/// then).
Tensor product_with_weight(const Sums& sums, const Tensor& x, const Tensor& weight);
/// Sum over the last axis, which stays with size 1.
Tensor row_sums(Summation order, const Tensor& x);
/// exp(x) / sum(exp(x)) over the last axis.
Tensor softmax(Summation order, const Tensor& x);
/// x - log(sum(exp(x))) over the last axis.
Tensor log_softmax(Summation order, const Tensor& x);

}  // namespace dsv32::reference
