#include "src/optimized/ops/index_scores.h"

#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "src/optimized/cpu/gemm.h"
#include "src/optimized/cpu/index_scores_rows.h"
#include "src/optimized/cpu/parallel.h"

namespace dsv32::optimized::cpu {
namespace {

// Rows (a query's head each) and keys of one product: it stays in the second-level cache.
constexpr int64_t kRows = 256;
constexpr int64_t kKeys = 512;
// Partial sums of dk: a fixed number, so that the bits do not depend on the thread count.
constexpr int64_t kGroups = 8;

/// Queries that share a product.
int64_t queries_per_block(const IndexSizes& n) {
  return std::max<int64_t>(kRows / std::max<int64_t>(n.heads, 1), 1);
}

int64_t query_blocks(const IndexSizes& n) {
  const int64_t block = queries_per_block(n);
  return (n.queries + block - 1) / block;
}

/// Queries [first, last) of batch b. They see no key at or after `edge`.
struct Task {
  int64_t b, first, last, edge;
};

Task task_of(const IndexSizes& n, int64_t first_query, int64_t i) {
  const int64_t block = queries_per_block(n), blocks = query_blocks(n);
  const int64_t first = i % blocks * block, last = std::min(first + block, n.queries);
  return {i / blocks, first, last, std::min(n.keys, first_query + last)};
}

template <typename T>
void forward(const IndexScoresParams<T>& p) {
  const IndexSizes& n = p.sizes;
  const Widened q(p.q, n.batch * n.queries * n.heads * n.dim), k(p.k, n.batch * n.keys * n.dim);
  parallel_for(n.batch * query_blocks(n), 1, [&](int64_t begin, int64_t end) {
    const Buffer products(queries_per_block(n) * n.heads * kKeys);
    for (int64_t i = begin; i < end; ++i) {
      const Task task = task_of(n, p.first_query, i);
      const int64_t first_query = task.b * n.queries + task.first;
      const int64_t queries = task.last - task.first;
      for (int64_t key = 0; key < task.edge; key += kKeys) {
        const int64_t count = std::min(kKeys, task.edge - key);
        gemm({.rows = queries * n.heads, .columns = count, .depth = n.dim}, 1,
             {q.data() + first_query * n.heads * n.dim, n.dim},
             {k.data() + (task.b * n.keys + key) * n.dim, n.dim, /*transposed=*/true}, 0,
             products.data(), kKeys);
        for (int64_t s = 0; s < queries; ++s) {
          weighted_relu_sum(p.weights + (first_query + s) * n.heads,
                            products.data() + s * n.heads * kKeys, n.heads, kKeys,
                            p.scores + (first_query + s) * n.keys + key, count);
        }
      }
      const bool* mask = p.mask + task.b * n.keys;
      for (int64_t s = task.first; s < task.last; ++s) {
        float* scores = p.scores + (task.b * n.queries + s) * n.keys;
        const int64_t seen = std::min(n.keys, p.first_query + s + 1);
        for (int64_t t = 0; t < seen; ++t) {
          if (!mask[t]) scores[t] = -std::numeric_limits<float>::infinity();
        }
        std::fill(scores + seen, scores + n.keys, -std::numeric_limits<float>::infinity());
      }
    }
  });
}

/// Memory of one thread in the backward.
struct Scratch {
  Buffer products;  // [rows, keys of a product]
  Buffer slopes;    // [queries, keys of a product]
  Buffer weighted;  // [rows, dim] q times its head's weight
  Buffer dq;        // [rows, dim]
  Buffer gathered;  // [K, dim]
  Buffer dk;        // [K, dim]

  Scratch(int64_t rows, int64_t queries, int64_t width, int64_t topk, int64_t dim)
      : products(rows * width),
        slopes(queries * width),
        weighted(rows * dim),
        dq(rows * dim),
        gathered(topk * dim),
        dk(topk * dim) {}
};

/// Rows of q with the keys that a product takes them to.
struct Product {
  int64_t first_query;  // in [0, B S)
  int64_t queries;
  const float* keys;  // [count, dim]
  int64_t count;
  const float* slopes;  // [queries, count]
  float* dk;            // [count, dim], added to
};

/// Adds to dq (not weighted yet), dk and dweights what one product gives.
template <typename T>
void add_product_gradients(const IndexScoresBackwardParams<T>& p, const float* q,
                           const Product& product, const Scratch& scratch) {
  const IndexSizes& n = p.sizes;
  const int64_t rows = product.queries * n.heads, count = product.count;
  float* a = scratch.products.data();
  gemm({.rows = rows, .columns = count, .depth = n.dim}, 1,
       {q + product.first_query * n.heads * n.dim, n.dim},
       {product.keys, n.dim, /*transposed=*/true}, 0, a, count);
  for (int64_t row = 0; row < rows; ++row) {
    p.dweights[product.first_query * n.heads + row] +=
        gate_slopes(product.slopes + row / n.heads * count, a + row * count, count);
  }
  gemm({.rows = rows, .columns = n.dim, .depth = count}, 1, {a, count}, {product.keys, n.dim}, 1,
       scratch.dq.data(), n.dim);
  gemm({.rows = count, .columns = n.dim, .depth = rows}, 1, {a, count, /*transposed=*/true},
       {scratch.weighted.data(), n.dim}, 1, product.dk, n.dim);
}

/// Clears the sums of these queries and weights their rows.
template <typename T>
void start_queries(const IndexScoresBackwardParams<T>& p, const float* q, int64_t first_query,
                   int64_t queries, const Scratch& scratch) {
  const IndexSizes& n = p.sizes;
  const int64_t first_row = first_query * n.heads;
  for (int64_t row = 0; row < queries * n.heads; ++row) {
    p.dweights[first_row + row] = 0;
    scale(p.weights[first_row + row], q + (first_row + row) * n.dim,
          scratch.weighted.data() + row * n.dim, n.dim);
  }
  std::fill_n(scratch.dq.data(), queries * n.heads * n.dim, 0.0f);
}

template <typename T>
void finish_queries(const IndexScoresBackwardParams<T>& p, int64_t first_query, int64_t queries,
                    const Scratch& scratch) {
  const IndexSizes& n = p.sizes;
  const int64_t first_row = first_query * n.heads;
  for (int64_t row = 0; row < queries * n.heads; ++row) {
    float* dq = scratch.dq.data() + row * n.dim;
    scale(p.weights[first_row + row], dq, dq, n.dim);
    narrow(dq, p.dq + (first_row + row) * n.dim, n.dim);
  }
}

/// dscores of a task for keys [key, key + count), 0 where one is not visible.
template <typename T>
void visible_slopes(const IndexScoresBackwardParams<T>& p, const Task& task, int64_t key,
                    int64_t count, float* slopes) {
  const bool* mask = p.mask + task.b * p.sizes.keys + key;
  for (int64_t s = task.first; s < task.last; ++s) {
    const float* from = p.dscores + (task.b * p.sizes.queries + s) * p.sizes.keys + key;
    const int64_t seen = std::clamp<int64_t>(p.first_query + s + 1 - key, 0, count);
    float* to = slopes + (s - task.first) * count;
    for (int64_t t = 0; t < seen; ++t) to[t] = mask[t] ? from[t] : 0.0f;
    std::fill(to + seen, to + count, 0.0f);
  }
}

template <typename T>
void dense_task(const IndexScoresBackwardParams<T>& p, const Task& task, const float* q,
                const float* k, float* dk, const Scratch& scratch) {
  const IndexSizes& n = p.sizes;
  const int64_t first_query = task.b * n.queries + task.first, queries = task.last - task.first;
  start_queries(p, q, first_query, queries, scratch);
  for (int64_t key = 0; key < task.edge; key += kKeys) {
    const int64_t count = std::min(kKeys, task.edge - key);
    visible_slopes(p, task, key, count, scratch.slopes.data());
    add_product_gradients(p, q,
                          {.first_query = first_query,
                           .queries = queries,
                           .keys = k + (task.b * n.keys + key) * n.dim,
                           .count = count,
                           .slopes = scratch.slopes.data(),
                           .dk = dk + key * n.dim},
                          scratch);
  }
  finish_queries(p, first_query, queries, scratch);
}

/// One query; its keys are gathered, their gradients scattered.
template <typename T>
void sparse_query(const IndexScoresBackwardParams<T>& p, int64_t b, int64_t query, const float* q,
                  const float* k, float* dk, const Scratch& scratch) {
  const IndexSizes& n = p.sizes;
  const int32_t* topk = p.topk + query * p.topk_width;
  const float* dscores = p.dscores + query * p.topk_width;
  std::vector<int64_t> keys;
  for (int64_t i = 0; i < p.topk_width; ++i) {
    if (topk[i] < 0) continue;
    const auto at = static_cast<int64_t>(keys.size());
    scratch.slopes.data()[at] = dscores[i];
    std::copy_n(k + (b * n.keys + topk[i]) * n.dim, n.dim, scratch.gathered.data() + at * n.dim);
    keys.push_back(topk[i]);
  }
  const auto count = static_cast<int64_t>(keys.size());
  std::fill_n(scratch.dk.data(), count * n.dim, 0.0f);
  start_queries(p, q, query, 1, scratch);
  if (count > 0) {
    add_product_gradients(p, q,
                          {.first_query = query,
                           .queries = 1,
                           .keys = scratch.gathered.data(),
                           .count = count,
                           .slopes = scratch.slopes.data(),
                           .dk = scratch.dk.data()},
                          scratch);
  }
  for (int64_t i = 0; i < count; ++i) {
    add(scratch.dk.data() + i * n.dim, dk + keys[i] * n.dim, n.dim);
  }
  finish_queries(p, query, 1, scratch);
}

/// Each (batch, group) has its own sum of dk, over the group's query blocks in order.
template <typename T>
void backward(const IndexScoresBackwardParams<T>& p) {
  const IndexSizes& n = p.sizes;
  const bool is_sparse = p.topk != nullptr;
  const Widened q(p.q, n.batch * n.queries * n.heads * n.dim), k(p.k, n.batch * n.keys * n.dim);
  const int64_t blocks = is_sparse ? n.queries : query_blocks(n);
  const int64_t groups = std::clamp<int64_t>(blocks, 1, kGroups), dk_size = n.keys * n.dim;
  const int64_t queries = is_sparse ? 1 : queries_per_block(n);
  const Buffer partial(n.batch * groups * dk_size);
  parallel_for(n.batch * groups, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(queries * n.heads, queries, is_sparse ? p.topk_width : kKeys,
                          p.topk_width, n.dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / groups;
      float* dk = partial.data() + i * dk_size;
      std::fill_n(dk, dk_size, 0.0f);
      for (int64_t block = i % groups; block < blocks; block += groups) {
        if (is_sparse) {
          sparse_query(p, b, b * n.queries + block, q.data(), k.data(), dk, scratch);
        } else {
          const Task task = task_of(n, p.first_query, b * blocks + block);
          dense_task(p, task, q.data(), k.data(), dk, scratch);
        }
      }
    }
  });
  for (int64_t b = 0; b < n.batch; ++b) {
    float* sum = partial.data() + b * groups * dk_size;
    for (int64_t group = 1; group < groups; ++group) add(sum + group * dk_size, sum, dk_size);
    narrow(sum, p.dk + b * dk_size, dk_size);
  }
}

const auto run_backward = [](const auto& params) { backward(params); };

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

at::Tensor index_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& weights,
                        const at::Tensor& mask, int64_t first_query) {
  return run_index_scores({q, k, weights}, {.tensor = mask, .first_query = first_query},
                          [](const auto& params) { forward(params); });
}

Gradients index_scores_backward(const at::Tensor& dscores, const at::Tensor& q, const at::Tensor& k,
                                const at::Tensor& weights, const at::Tensor& mask,
                                int64_t first_query) {
  return run_index_scores_backward(dscores, {q, k, weights},
                                   {.tensor = mask, .first_query = first_query}, run_backward);
}

Gradients index_scores_backward_sparse(const at::Tensor& dscores, const at::Tensor& topk,
                                       const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& weights) {
  return run_index_scores_backward(dscores, {q, k, weights}, {.tensor = topk, .is_sparse = true},
                                   run_backward);
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("index_scores", &index_scores);
  m.impl("index_scores_backward", &index_scores_backward);
  m.impl("index_scores_backward_sparse", &index_scores_backward_sparse);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
