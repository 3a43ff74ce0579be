#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>

#include "src/optimized/simt/bf16.h"

/// Checks of the arguments of ops, and the way from tensors to pointers. Every error reads
/// `op: argument: expected X, got Y`. Sizes are symbolic, so that tracing works.
namespace dsv32::optimized {

/// An argument with the names that an error text gives.
struct Argument {
  const char* op;
  const char* name;
  const at::Tensor& tensor;
};

/// Each of these throws unless the argument is as its name and comment say. Here: float32 or
/// bfloat16.
void expect_real(const Argument& argument);
void expect_dtype(const Argument& argument, at::ScalarType dtype);
/// It has `rank` axes or more.
void expect_rank_from(const Argument& argument, int64_t rank);
/// It has exactly `rank` axes.
void expect_rank(const Argument& argument, int64_t rank);
void expect_shape(const Argument& argument, c10::SymIntArrayRef shape);
/// It has at least one element along the last axis.
void expect_elements(const Argument& argument);
/// It has at most `limit` elements along `axis` (negative: from the end).
void expect_at_most(const Argument& argument, int64_t axis, int64_t limit);
/// It has the dtype and device of `other`, which is the op's first tensor.
void expect_like(const Argument& argument, const Argument& other);
/// It has the device of `other`; another dtype is allowed.
void expect_device_of(const Argument& argument, const Argument& other);

/// A new tensor of another dtype on the device of `like`.
at::Tensor empty_as(const at::Tensor& like, c10::SymIntArrayRef shape, at::ScalarType dtype);

/// Calls body(float{}) or body(bf16{}), by dtype.
template <typename Body>
void dispatch_real(const Argument& argument, Body body) {
  expect_real(argument);
  if (argument.tensor.scalar_type() == at::kFloat) {
    body(float{});
  } else {
    body(bf16{});
  }
}

/// Points to the elements of a contiguous tensor; null for one that is not defined.
template <typename T>
const T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}

template <typename T>
T* mutable_pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

/// Gives the tensor in contiguous form; undefined when it is absent.
inline at::Tensor contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? tensor->contiguous() : at::Tensor();
}

}  // namespace dsv32::optimized
