#pragma once

namespace dsv32::optimized {

/// Whose kernels run.
enum class Kernels {
  library,  // dsv32::*: CPU kernels on the CPU, CUDA kernels on a device
  simt,     // dsv32_simt::*: the CUDA kernels in the executor, on CPU tensors
};

/// Which form of attention runs; both are the same function (docs/spec.md 1.4).
enum class AttentionForm {
  automatic,  // the one that needs fewer multiplications for this length
  expanded,   // keys and values per head under a bit mask
  absorbed,   // one latent key for all heads, gathered by index
};

/// How the model computes what it computes.
struct OptimizedOptions {
  Kernels kernels = Kernels::library;
  AttentionForm attention = AttentionForm::automatic;
  /// Keep the input of every layer alone and run the layer again in the backward pass; false keeps
  /// everything that it needs. The bits are the same.
  bool checkpointing = true;
};

}  // namespace dsv32::optimized
