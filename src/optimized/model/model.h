#pragma once

#include <memory>
#include <string>

#include "src/model/implementation.h"

/// The optimized model: the ops of this folder put together by hand, forward and backward.
namespace dsv32::optimized {

/// Whose kernels run.
enum class Kernels {
  library,  // dsv32::*: CPU kernels on the CPU, CUDA kernels on a device
  simt,     // dsv32_simt::*: the CUDA kernels in the executor, on CPU tensors
};

/// Which form of attention runs; both are the same function (SPEC 1.4).
enum class AttentionForm {
  automatic,  // the one that needs fewer multiplications for this length
  expanded,   // keys and values per head under a bit mask
  absorbed,   // one latent key for all heads, gathered by index
};

/// The first size of this config that the kernels do not take: "index_head_dim: expected at most
/// 128, got 256"; empty: they take all of it.
std::string unsupported(const ModelConfig& config);
/// The library was built with CUDA kernels.
bool has_device_kernels();

struct OptimizedOptions {
  Kernels kernels = Kernels::library;
  AttentionForm attention = AttentionForm::automatic;
  /// Keep the input of every layer alone and run the layer again in the backward pass; false keeps
  /// everything that it needs. The bits are the same.
  bool checkpointing = true;
};

/// Computes spec-1; another dialect is an Error (usage). float32 or bfloat16. Taps that a fused
/// kernel never holds (attn.logits, attn.probs) are not made. `weights` is used layer by layer and
/// must outlive the model.
std::unique_ptr<Implementation> make_optimized(const ModelConfig& config,
                                               const WeightSource& weights,
                                               const OptimizedOptions& options = {});

}  // namespace dsv32::optimized
