#pragma once

#include <cstdint>

#include "src/model/batch.h"
#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// linear_cross_entropy: mean of lse - logit[label] over the counted tokens, logits = x weight^T
/// (docs/spec.md 1.10), without the logits as a whole: they come in chunks of columns, and the
/// log-sum-exp of a row is updated chunk by chunk. The products are plain GEMMs and stay outside.
namespace dsv32::optimized {

enum class CrossEntropyMutant {
  none,
  wrong_tail,        // the last column of a chunk is not seen
  not_rescaled,      // the sum keeps the maximum of the chunk before
  wrong_label,       // the label is counted from the chunk's first column, not the vocabulary's
  counts_ignored,    // ignored tokens are in the mean
  dropped_row,       // the last token is left out of the loss
  ignored_gradient,  // ignored tokens have a gradient
  missing_barrier,   // the loss is added before all parts are there
  rounded_lse,       // the gradient reads lse as one float32
};

/// Takes up one chunk of logits.
struct CrossEntropyChunkParams {
  const float* logits;    // [rows, columns]
  const int64_t* labels;  // [rows]
  float* highest;         // [rows] highest logit so far; -inf before the first chunk
  float* sum;             // [rows] sum of exp(logit - highest) so far; 0 before the first chunk
  float* picked;          // [rows] the label's logit, set by the chunk that holds it
  int64_t rows;
  int64_t columns;
  int64_t first_column;  // of the chunk in the vocabulary
};

struct CrossEntropyLossParams {
  const int64_t* labels;  // [rows]
  const float* highest;   // [rows]
  const float* sum;       // [rows]
  const float* picked;    // [rows]
  double* lse;            // [rows] log-sum-exp of the logits
  float* loss;            // [1]; NaN when no token is counted
  int64_t rows;
};

/// dlogits = (exp(logit - lse) - [column is the label]) scale; 0 for ignored tokens. Where the
/// label is almost certain the difference is small, and a rounding of lse would be all of it: lse
/// is float64, and is taken off in two float32 parts.
template <typename T>
struct CrossEntropyGradientParams {
  const float* logits;    // [rows, columns]
  const int64_t* labels;  // [rows]
  const double* lse;      // [rows]
  const float* scale;     // [1] dloss / number of counted tokens
  T* dlogits;             // [rows, columns]; may be `logits`
  int64_t rows;
  int64_t columns;
  int64_t first_column;
};

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

void launch_cross_entropy_chunk(const CrossEntropyChunkParams& params, Stream stream);
void launch_cross_entropy_loss(const CrossEntropyLossParams& params, Stream stream);
template <typename T>
void launch_cross_entropy_gradient(const CrossEntropyGradientParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
