#pragma once

#include <cstddef>
#include <cstdint>

#include "src/optimized/simt/backend.h"
#include "src/optimized/simt/bf16.h"

/// sparse_mla, dense_mla: attention in the absorbed form (docs/spec.md 1.4, 1.7). All heads share
/// one key per token, the latent with its rope part; the value is the latent. With s = scale q . kv
/// over the keys of a query: out = sum of softmax(s) kv[:kv_lora], lse = log of the sum of exp(s).
namespace dsv32::optimized {

enum class SparseMlaMutant {
  none,
  wrong_tail,     // the last slot of a list is not read
  dropped_block,  // the last block of keys is left out
  off_by_one,     // a dense query sees one key too many
  wrong_scale,    // the gradient of the scores lacks the softmax scale
  dropped_chunk,  // each chunk of queries starts dkv anew
};

/// Largest kv_lora + rope that the kernels take.
constexpr int64_t kMaxMlaWidth = 576;

/// Which keys each query sees: those listed in `topk`, distinct in a row, entries outside [0, T)
/// are no keys; or, dense, key t of batch b iff t <= first_query + s and mask[b][t].
struct KeyLists {
  bool is_dense;
  const int32_t* topk;  // [B,S,slots]; not dense
  const bool* mask;     // [B,T]; dense
  int64_t slots;        // K; T when dense
  int64_t first_query;  // dense
};

struct MlaShape {
  int64_t batch;    // B
  int64_t queries;  // S
  int64_t keys;     // T
  int64_t heads;    // H
  int64_t kv_lora;  // R
  int64_t width;    // R + rope
};

/// T: float or bf16. Sums and softmax are float32; in bf16 the probabilities are rounded to bf16
/// before they meet the values.
template <typename T>
struct SparseMlaParams {
  const T* q;   // [B,S,H,width]
  const T* kv;  // [B,T,width]
  T* out;       // [B,S,H,kv_lora], zeros without keys
  float* lse;   // [B,S,H], -inf without keys
  KeyLists lists;
  MlaShape shape;
  float scale;
};

/// With p = exp(s - lse), delta = dout . out, ds = scale p (dout . value - delta):
/// dq = sum over keys of ds kv; dkv = sum over queries and heads of ds q + p dout.
/// Deterministic: each (query, head tile) writes what it gives to each of its keys, and each key
/// adds that up in the order of queries, one chunk of queries after the other. Otherwise dkv_sum,
/// zero at the start, collects it by atomic additions and dkv is not written.
template <typename T>
struct SparseMlaBackwardParams {
  const T* dout;         // [B,S,H,kv_lora]
  const T* out;          // [B,S,H,kv_lora]
  const float* lse;      // [B,S,H]
  const T* q;            // [B,S,H,width]
  const T* kv;           // [B,T,width]
  T* dq;                 // [B,S,H,width]
  T* dkv;                // [B,T,width]
  float* dkv_sum;        // [B,T,width]
  float* contributions;  // [chunk,mla_head_tiles(H),slots,width] workspace; null: atomic
  int32_t* slot_of_key;  // [chunk,T] workspace; null: atomic
  int64_t chunk;         // queries per chunk
  KeyLists lists;
  MlaShape shape;
  float scale;
};

/// Heads of a tile: 32, or this where there are more; shared memory does not hold 64 rows of
/// float32.
template <typename T>
constexpr int64_t kMlaMaxTileHeads = sizeof(T) == 2 ? 64 : 32;

/// Head tiles that a query is cut into.
template <typename T>
DSV32_HOST_DEVICE int64_t mla_head_tiles(int64_t heads) {
  const int64_t rows = heads > 32 ? kMlaMaxTileHeads<T> : 32;
  return (heads + rows - 1) / rows;
}

}  // namespace dsv32::optimized

namespace dsv32::optimized::DSV32_BACKEND {

template <typename T>
void launch_sparse_mla(const SparseMlaParams<T>& params, Stream stream);

template <typename T>
void launch_sparse_mla_backward(const SparseMlaBackwardParams<T>& params, Stream stream);

}  // namespace dsv32::optimized::DSV32_BACKEND
