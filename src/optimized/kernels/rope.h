#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// rope: rotates pairs of lanes by the angles of their token (docs/spec.md 1.3, 1.4, 1.5). The
/// backward pass is the inverse rotation: the same kernel with `inverse`.
namespace dsv32::optimized {

enum class RopeMutant {
  none,
  other_pairing,  // interleaved where half-split is asked for, and the reverse
  never_inverse,  // rotates forward in the backward pass
  angle_of_row,   // angles by row: of the wrong token as soon as there are two heads
  rest_left_out,  // the lanes behind the rotated ones are not copied
  dropped_block,  // the last block does nothing
};

/// T: float or bf16. Arithmetic is float32.
template <typename T>
struct RopeParams {
  const T* x;        // [tokens, heads, width]; lanes 0 .. 2 pairs - 1 are rotated
  const float* cos;  // [tokens, pairs]
  const float* sin;  // [tokens, pairs]
  T* y;              // [tokens, heads, width]
  int64_t tokens;
  int64_t heads;
  int64_t width;
  int64_t pairs;
  bool interleaved;  // pair i is lanes (2i, 2i+1), else lanes (i, i + pairs)
  bool inverse;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_rope(const RopeParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
