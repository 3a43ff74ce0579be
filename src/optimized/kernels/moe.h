#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// moe: the routed experts (docs/spec.md 1.9). Tokens are sorted by expert, a grouped GEMM runs all
/// experts at once, and the weighted results are added in ascending expert order. A token's result
/// has the same bits in whatever batch it stands. Deterministic, forward and backward.
namespace dsv32::optimized {

enum class MoeMutant {
  none,
  unstable_sort,    // tokens of an expert in descending order
  lost_gather,      // every entry reads the first token
  swapped_weights,  // gate and up are swapped
  unweighted,       // routing weights are left out
  slot_order,       // results are added in the order of the slots
  dropped_expert,   // the last expert with tokens is left out
  wrong_slope,      // the derivative of silu without its second term
  stale_gradient,   // the gradient of an expert without tokens keeps what lies there
};

/// An entry is one use of an expert by a token: entry t * k + slot. Sorted by expert, and by entry
/// within an expert, entries have positions 0, 1, ... A slot that names no expert has none.
struct ExpertSort {
  const int32_t* chosen;  // [tokens, k] distinct in a token
  int32_t* counts;        // [experts]
  int32_t* offsets;       // [experts + 1] first position of each expert
  int32_t* tiles;         // [experts + 1] first tile of each expert: tiles of 64 positions
  int32_t* order;         // [entries] entry at each position
  int32_t* position;      // [entries] position of each entry; not set where none
  int64_t tokens;
  int64_t k;
  int64_t experts;

  DSV32_HOST_DEVICE int64_t entries() const { return tokens * k; }
};

/// Per position: inner = silu(x gate^T) * (x up^T), y = inner down^T. T: float or bf16; `inner` is
/// rounded to T, everything else is float32.
template <typename T>
struct MoeParams {
  ExpertSort sort;
  const T* x;            // [tokens, hidden]
  const float* weights;  // [tokens, k]
  const T* const* gate;  // [experts] of [width, hidden]
  const T* const* up;    // [experts] of [width, hidden]
  const T* const* down;  // [experts] of [hidden, width]
  T* out;                // [tokens, hidden]; null: `sum` takes the result
  float* sum;            // [tokens, hidden] to which it is added, else null
  T* inner;              // [entries, width] workspace
  float* gated;          // [entries, width] x gate^T for the backward, else null
  float* upped;          // [entries, width] x up^T for the backward, else null
  float* y;              // [entries, hidden] workspace
  int64_t hidden;
  int64_t width;
};

/// Per position, with dinner = dout down: dweight = dinner . inner, dgated = w dinner up silu',
/// dupped = w dinner silu. dx = sum over a token's entries of dgated gate + dupped up.
template <typename T>
struct MoeBackwardParams {
  MoeParams<T> forward;  // `out` and `y` unused; inner, gated, upped are recomputed
  const T* dout;         // [tokens, hidden]
  T* dx;                 // [tokens, hidden]; unused with `dx_sum`
  float* dx_sum;         // [tokens, hidden] to which dx is added, else null
  float* dweights;       // [tokens, k], zeros before
  T* const* dgate;       // [experts] of [width, hidden]
  T* const* dup;         // [experts] of [width, hidden]
  T* const* ddown;       // [experts] of [hidden, width]
  float* dinner;         // [entries, width] workspace
  T* weighted;           // [entries, width] workspace: w inner
  T* dgated;             // [entries, width] workspace
  T* dupped;             // [entries, width] workspace
  float* dx_entries;     // [entries, hidden] workspace
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_moe(const MoeParams<T>& params, Stream stream);
template <typename T>
void launch_moe_backward(const MoeBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
