#pragma once

#include "src/bridge/libtorch.h"
#include "src/model/dialect.h"
#include "src/model/tensor.h"

namespace dsv32::reference {

using torch::Tensor;

/// Where values are rounded. Everything is computed in float64 (the oracle) or float32; the 16-bit
/// modes round results to the 16-bit type and go on in float32. Autograd rounds the gradient at the
/// same places.
struct Rounding {
  DType dtype = DType::float32;
  RoundingStyle style = RoundingStyle::spec;

  torch::ScalarType compute_type() const {
    return dtype == DType::float64 ? torch::kFloat64 : torch::kFloat32;
  }
  bool is_16bit() const { return is_narrow(dtype); }
  bool like_transformers() const { return is_16bit() && style == RoundingStyle::transformers; }

  /// A tap, or a value between taps that every 16-bit model stores: the output of a linear layer,
  /// silu(gate) * up, the product of queries and keys, the normed indexer key (docs/spec.md 1, bf16
  /// mode).
  Tensor stored(const Tensor& x) const { return is_16bit() ? round(x) : x; }
  /// A value that transformers stores in the model's dtype and the official code keeps in float32.
  Tensor cast(const Tensor& x) const { return like_transformers() ? round(x) : x; }

 private:
  Tensor round(const Tensor& x) const {
    const auto narrow = dtype == DType::float16 ? torch::kFloat16 : torch::kBFloat16;
    return x.to(narrow).to(torch::kFloat32);
  }
};

}  // namespace dsv32::reference
