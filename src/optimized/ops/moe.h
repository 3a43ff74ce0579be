#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "src/optimized/kernels/moe.h"
#include "src/optimized/ops/arguments.h"

/// Checks and outputs of moe, the same for every kernel of the op.
namespace dsv32::optimized {

/// What both directions take.
struct MoeArguments {
  at::Tensor x;         // [N,hidden]
  at::Tensor experts;   // [N,K] int32, -1: none
  at::Tensor weights;   // [N,K] float32
  at::TensorList gate;  // [E] of [I,hidden]
  at::TensorList up;    // [E] of [I,hidden]
  at::TensorList down;  // [E] of [hidden,I]

  int64_t tokens() const { return x.size(0); }
  int64_t hidden() const { return x.size(1); }
  int64_t k() const { return experts.size(1); }
  int64_t count() const { return static_cast<int64_t>(gate.size()); }
  int64_t width() const { return gate[0].size(0); }
};

struct MoeGradients {
  at::Tensor dx;                              // as x; undefined with dx_sum
  at::Tensor dx_sum;                          // [N,hidden] float32: what dx is added to
  at::Tensor dweights;                        // as weights, zeros
  std::vector<at::Tensor> dgate, dup, ddown;  // as the weights, not filled

  auto tuple() const {
    return std::make_tuple(dx.defined() ? dx : dx_sum, dweights, dgate, dup, ddown);
  }
};

/// Checks the arguments; returns out, as x.
at::Tensor moe_output(const char* op, const MoeArguments& arguments);
/// The same of an op that adds to sum [N,hidden] float32.
void expect_sum(const char* op, const at::Tensor& sum, const MoeArguments& arguments);
MoeGradients moe_gradients(const at::Tensor& dout, const MoeArguments& arguments);
/// Of moe_backward_add: dx_sum is a copy of `sum`, to which dx is still to be added.
MoeGradients moe_added_gradients(const at::Tensor& sum, const at::Tensor& dout,
                                 const MoeArguments& arguments);

/// That every expert exists; reads the values.
void expect_experts(const char* op, const MoeArguments& arguments);

/// Contiguous tensors and their addresses.
template <typename T>
class TensorTable {
 public:
  explicit TensorTable(at::TensorList tensors) {
    for (const at::Tensor& tensor : tensors) {
      tensors_.push_back(tensor.contiguous());
      addresses_.push_back(static_cast<const T*>(tensors_.back().const_data_ptr()));
    }
  }
  const std::vector<const T*>& addresses() const { return addresses_; }

 private:
  std::vector<at::Tensor> tensors_;
  std::vector<const T*> addresses_;
};

}  // namespace dsv32::optimized
