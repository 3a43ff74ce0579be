#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// embedding_backward: dweight[id] = sum of dout over the tokens of that id, in the order of the
/// tokens. Deterministic.
namespace dsv32::optimized {

enum class EmbeddingMutant {
  none,
  first_only,    // the other tokens of an id are left out
  dropped_last,  // the last token is left out
  wrong_tail,    // the last column is not written
  lost_order,    // rows are read in sorted order, not at the token they belong to
  atomic_sum,    // every token adds its row, in the order in which blocks come
};

/// T: float or bf16; sums are float32.
template <typename T>
struct EmbeddingBackwardParams {
  const T* dout;         // [tokens, hidden]
  const int64_t* ids;    // [tokens] ascending
  const int64_t* order;  // [tokens] the token of each id; ascending among equal ids
  T* dweight;            // [vocabulary, hidden], zeros before
  int64_t tokens;
  int64_t hidden;
  int64_t vocabulary;  // an id outside is left out
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_embedding_backward(const EmbeddingBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
