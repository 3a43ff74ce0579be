#pragma once

#include <memory>
#include <string>

#include "src/model/implementation.h"
#include "src/optimized/model/options.h"

/// The optimized model: the ops of this folder put together by hand, forward and backward.
namespace dsv32::optimized {

/// The first size of this config that the kernels do not take: "index_head_dim: expected at most
/// 128, got 256"; empty: they take all of it.
std::string unsupported(const ModelConfig& config);
/// The library was built with CUDA kernels.
bool has_device_kernels();

/// Computes spec-1; another dialect is an Error (usage). float32 or bfloat16. Taps that a fused
/// kernel never holds (attn.logits, attn.probs) are not made. `weights` is used layer by layer and
/// must outlive the model.
std::unique_ptr<Implementation> make_optimized(const ModelConfig& config,
                                               const WeightSource& weights,
                                               const OptimizedOptions& options = {});

}  // namespace dsv32::optimized
