#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "src/bridge/tap_flow.h"
#include "src/model/config.h"
#include "src/model/objective.h"
#include "src/optimized/model/op_call.h"
#include "src/optimized/model/options.h"

namespace dsv32::optimized {

using at::Tensor;

/// What every part of a run knows.
struct Context {
  const ModelConfig& config;
  OptimizedOptions options;
  OpCaller ops;
  Objective objective;
  at::ScalarType type;  // of activations and weights: float32 or bfloat16
  at::Device device;
  bool staged = false;                // stages read what they are fed
  std::optional<Fp8Config> fp8 = {};  // in fp8 mode: of weights and activations
  bool experts_in_groups = false;     // a few experts' weights at a time; the bits are the same

  bool trains_indexer() const { return objective.kl != KlStage::none; }
  /// Attention goes over every visible key: by config, or in the dense warm-up (docs/spec.md 2, Eq.
  /// 3).
  bool dense_attention() const {
    return !config.use_sparse_attention || objective.kl == KlStage::warmup;
  }
};

/// cos and sin of every rotation angle, [B,S,rope/2] float32.
struct RopeTable {
  Tensor cos, sin;
};
/// The table of positions [B,S] int64 on the CPU, its angles made in float64. docs/spec.md 1.3
/// (YaRN).
RopeTable rope_table(const Context& ctx, const Tensor& positions);
/// qk_head_dim^-0.5 * mscale^2. docs/spec.md 1.3.
double softmax_scale(const ModelConfig& config);

/// Where a part's weight gradients go: the name within the layer, the gradient.
using KeepGradient = std::function<void(const std::string&, const Tensor&)>;

using at::linear;  // x [..,in] times weight [out,in]^T
class Weights;
/// The linear layer of this weight: x [..,in] -> [..,out]. fp8 mode quantises x and multiplies
/// codes (docs/spec.md 1).
Tensor project(const Context& ctx, const Tensor& x, Weights& weights, const std::string& name);
/// Codes of runs of the last axis and their scales.
struct Quantized {
  Tensor codes, scales;  // [..,D] uint8, [..,ceil(D/run)] float32
};
Quantized quantize(const Context& ctx, const Tensor& x, int64_t run);
/// The values of codes in bfloat16, exact.
Tensor values_of(const Tensor& codes);
/// x in bfloat16 after Q and back.
Tensor through_fp8(const Context& ctx, const Tensor& x);
/// Gradient of a linear layer's input.
inline Tensor linear_dx(const Tensor& dy, const Tensor& weight) { return at::matmul(dy, weight); }
/// Gradient of its weight, [out,in].
inline Tensor linear_dweight(const Tensor& dy, const Tensor& x) {
  return at::matmul(dy.flatten(0, -2).t(), x.flatten(0, -2));
}

}  // namespace dsv32::optimized
