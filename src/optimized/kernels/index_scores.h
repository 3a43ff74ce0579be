#pragma once

#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// index_scores: score[b,s,t] = sum_j w[b,s,j] relu(q[b,s,j] . k[b,t]) (docs/spec.md 1.5), forward
/// and backward, without a [B,S,HI,T] tensor. Query s sees key t when t <= first_query + s and the
/// mask has it.
namespace dsv32::optimized {

enum class IndexScoresMutant {
  none,
  hidden_diagonal,   // a query does not see its own key
  unmasked,          // padding keys are scored
  dropped_head,      // the last head is left out
  missing_barrier,   // the queries of a head are read before they are there
  ungated,           // gradient where the ReLU was off
  unweighted_dk,     // dk without the head's weight
  stale_slopes,      // a product starts before all slopes are written
  dropped_split,     // the last partial sum of dk is left out
  lost_first_query,  // dk leaves out the first query that sees its keys
  atomic_dk,         // partial sums of dk added in the order in which blocks come
};

/// Widest index_head_dim.
constexpr int64_t kIndexMaxDim = 128;

/// Axes of both directions.
struct IndexSizes {
  int64_t batch;    // B
  int64_t queries;  // S
  int64_t keys;     // T
  int64_t heads;    // HI
  int64_t dim;      // D, at most kIndexMaxDim
};

/// T: float or bf16. Sums are float32.
template <typename T>
struct IndexScoresParams {
  const T* q;            // [B,S,HI,D]
  const T* k;            // [B,T,D]
  const float* weights;  // [B,S,HI]
  const bool* mask;      // [B,T]
  float* scores;         // [B,S,T], -inf where a key is not visible
  IndexSizes sizes;
  int64_t first_query;
};

/// With a = q . k and g = dscores where visible: dweights = sum_t g relu(a),
/// dq = w sum_t g [a > 0] k, dk = sum_s sum_j w g [a > 0] q. Deterministic.
template <typename T>
struct IndexScoresBackwardParams {
  const float* dscores;  // [B,S,T]; with topk [B,S,K]
  const int32_t* topk;   // [B,S,K] distinct keys, -1: none; null: every visible key
  const T* q;            // [B,S,HI,D]
  const T* k;            // [B,T,D]
  const float* weights;  // [B,S,HI]
  const bool* mask;      // [B,T]; null with topk
  T* dq;                 // [B,S,HI,D]
  T* dk;                 // [B,T,D]
  float* dweights;       // [B,S,HI]
  float* dk_partial;     // [index_key_splits(sizes),B,T,D] workspace
  float* dense_dscores;  // [B,S,T] workspace with topk, else null
  IndexSizes sizes;
  int64_t first_query;
  int64_t topk_width;  // K
};

/// Rows (a query's head each) and keys of a tile of the backward.
constexpr int64_t kIndexTile = 64;

/// Number of partial sums of dk: a function of the shape alone, so that the bits are too.
DSV32_HOST_DEVICE inline int64_t index_key_splits(const IndexSizes& sizes) {
  constexpr int64_t kBlocks = 264;  // two per multiprocessor of an H200
  const int64_t key_tiles = sizes.batch * ((sizes.keys + kIndexTile - 1) / kIndexTile);
  const int64_t row_tiles = (sizes.queries * sizes.heads + kIndexTile - 1) / kIndexTile;
  const int64_t wanted = key_tiles == 0 ? 1 : (kBlocks + key_tiles - 1) / key_tiles;
  const int64_t splits = wanted < 16 ? wanted : 16;
  return splits < row_tiles ? splits : (row_tiles > 0 ? row_tiles : 1);
}

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_index_scores(const IndexScoresParams<T>& params, Stream stream);

template <typename T>
void launch_index_scores_backward(const IndexScoresBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
