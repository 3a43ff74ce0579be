#pragma once

#include <cstddef>
#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// masked_mha: attention in the expanded form (docs/spec.md 1.4, 1.7), each query over the keys
/// whose bits are set. With s = scale (q_nope . k_nope + q_rope . k_rope) per head, the rope part
/// of the keys shared by all heads: out = sum of softmax(s) v, lse = log of the sum of exp(s).
namespace dsv32::optimized {

enum class MaskedMhaMutant {
  none,
  wrong_tail,     // bits past the last key count as keys
  dropped_block,  // the last block of keys is left out
  wrong_scale,    // the gradient of the scores lacks the softmax scale
  skipped_rows,   // the last tile of queries gives nothing to the keys
  wrong_word,     // every row takes the bits of the tile's first row
  dropped_head,   // the last head is left out of dk_rope
};

/// Largest nope + rope, and largest value width.
constexpr int64_t kMaxMhaWidth = 256;

struct MhaShape {
  int64_t batch;    // B
  int64_t queries;  // S
  int64_t keys;     // T
  int64_t heads;    // H
  int64_t nope;
  int64_t rope;
  int64_t value;  // V

  DSV32_HOST_DEVICE int64_t width() const { return nope + rope; }
  /// Words of 32 keys per query.
  DSV32_HOST_DEVICE int64_t words() const { return (keys + 31) / 32; }
};

/// T: float or bf16. Sums and softmax are float32; in bf16 the probabilities are rounded to bf16
/// before they meet the values.
template <typename T>
struct MaskedMhaParams {
  const T* q;              // [B,S,H,nope+rope]
  const T* k_nope;         // [B,T,H,nope]
  const T* k_rope;         // [B,T,rope]
  const T* v;              // [B,T,H,V]
  const int32_t* support;  // [B,S,words] bit t % 32 of word t / 32: key t is seen
  T* out;                  // [B,S,H,V], zeros without keys
  float* lse;              // [B,S,H], -inf without keys
  MhaShape shape;
  float scale;
};

/// With p = exp(s - lse), delta = dout . out, ds = scale p (dout . v - delta): dq = sum over keys
/// of ds k; dk = sum over queries of ds q, for the rope part over heads too; dv = sum over queries
/// of p dout. Deterministic: each sum has one owner and a fixed order.
template <typename T>
struct MaskedMhaBackwardParams {
  const T* dout;           // [B,S,H,V]
  const T* out;            // [B,S,H,V]
  const float* lse;        // [B,S,H]
  const T* q;              // [B,S,H,nope+rope]
  const T* k_nope;         // [B,T,H,nope]
  const T* k_rope;         // [B,T,rope]
  const T* v;              // [B,T,H,V]
  const int32_t* support;  // [B,S,words]
  T* dq;                   // [B,S,H,nope+rope]
  T* dk_nope;              // [B,T,H,nope]
  T* dk_rope;              // [B,T,rope]
  T* dv;                   // [B,T,H,V]
  float* delta;            // [B,S,H] workspace
  float* dk_rope_heads;    // [B,T,H,rope] workspace
  MhaShape shape;
  float scale;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_masked_mha(const MaskedMhaParams<T>& params, Stream stream);

template <typename T>
void launch_masked_mha_backward(const MaskedMhaBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
