#include "src/optimized/ops/kl.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "src/optimized/cpu/gemm.h"
#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/softmax.h"

namespace dsv32::optimized::cpu {
namespace {

// Rows (a query's head each) and keys of one product: it stays in the second-level cache.
constexpr int64_t kRows = 256;
constexpr int64_t kKeys = 512;

/// The keys of one query, by place.
template <typename T>
struct Places {
  std::vector<int64_t> place;
  std::vector<int64_t> key;

  Places(const KlParams<T>& p, int64_t row) {
    const KlSizes& n = p.sizes;
    const int64_t seen = std::min(n.places, p.first_query + row % n.queries + 1);
    for (int64_t i = 0; i < (p.topk != nullptr ? n.places : seen); ++i) {
      const bool has = p.topk != nullptr ? p.topk[row * n.places + i] >= 0
                                         : p.mask[row / n.queries * n.keys + i];
      if (!has) continue;
      place.push_back(i);
      key.push_back(p.topk != nullptr ? p.topk[row * n.places + i] : i);
    }
  }
};

/// Memory of one thread.
struct Scratch {
  Buffer products;  // [rows of a product, keys of a product]
  Buffer gathered;  // [K, width], if sparse
  Buffer scores;    // [places]
  Buffer mass;      // [places]

  Scratch(int64_t rows, int64_t columns, int64_t gathered_size, int64_t places)
      : products(rows * columns), gathered(gathered_size), scores(places), mass(places) {}
};

struct Product {
  int64_t first_row;  // query in [0, B S)
  int64_t queries;
  const float* keys;  // [count, width]
  int64_t count;
  float* mass;  // [queries, count], rows `stride` apart
  int64_t stride;
};

/// mass[query, key] = sum over heads of exp(scale q . key - lse).
template <typename T>
void head_sums(const KlParams<T>& p, const float* q, const Product& product, float* logits) {
  const KlSizes& n = p.sizes;
  const int64_t count = product.count, first = product.first_row * n.heads;
  gemm({.rows = product.queries * n.heads, .columns = count, .depth = n.width}, p.scale,
       {q + first * n.width, n.width}, {product.keys, n.width, /*transposed=*/true}, 0, logits,
       count);
  for (int64_t s = 0; s < product.queries; ++s) {
    float* mass = product.mass + s * product.stride;
    std::fill_n(mass, count, 0.0f);
    for (int64_t row = s * n.heads; row < (s + 1) * n.heads; ++row) {
      const float lse = p.lse[first + row];
      if (lse == -std::numeric_limits<float>::infinity()) continue;
      exp_minus(logits + row * count, lse, logits + row * count, count);
      add(logits + row * count, mass, count);
    }
  }
}

/// Writes the results of one query. mass[i] belongs to places.place[i].
template <typename T>
void finish_row(const KlParams<T>& p, int64_t row, const Places<T>& places, const float* mass,
                const Scratch& scratch) {
  const KlSizes& n = p.sizes;
  const auto count = static_cast<int64_t>(places.key.size());
  float *target = p.target + row * n.places, *student = p.student + row * n.places;
  float* dscores = p.dscores + row * n.places;
  for (float* out : {target, student, dscores}) std::fill_n(out, n.places, 0.0f);
  float* exponentials = scratch.scores.data();
  const float* scores = p.scores + row * n.keys;
  for (int64_t i = 0; i < count; ++i) exponentials[i] = scores[places.key[i]];
  float sum = 0;
  const float log_sum = softmax_numerators(exponentials, count, &sum);
  const float total = cpu::sum(mass, count);
  double divergence = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t place = places.place[i];
    const float wanted = total > 0 ? mass[i] / total : 0.0f;
    target[place] = wanted;
    student[place] = exponentials[i] / sum;
    dscores[place] = student[place] - wanted;
    if (wanted > 0) divergence += wanted * (std::log(wanted) - (scores[places.key[i]] - log_sum));
  }
  p.rows[row] = static_cast<float>(divergence);
}

/// One query with its keys gathered.
template <typename T>
void sparse_row(const KlParams<T>& p, int64_t row, const float* q, const float* kv,
                const Scratch& scratch) {
  const KlSizes& n = p.sizes;
  const Places<T> places(p, row);
  const auto count = static_cast<int64_t>(places.key.size());
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(kv + (row / n.queries * n.keys + places.key[i]) * n.width, n.width,
                scratch.gathered.data() + i * n.width);
  }
  if (count > 0) {
    head_sums(p, q,
              {.first_row = row,
               .queries = 1,
               .keys = scratch.gathered.data(),
               .count = count,
               .mass = scratch.mass.data(),
               .stride = count},
              scratch.products.data());
  }
  finish_row(p, row, places, scratch.mass.data(), scratch);
}

/// Queries [first, last) of batch b; the mass of a query lies in its row of target meanwhile.
template <typename T>
void dense_rows(const KlParams<T>& p, int64_t b, int64_t first, int64_t last, const float* q,
                const float* kv, const Scratch& scratch) {
  const KlSizes& n = p.sizes;
  const int64_t edge = std::min(n.keys, p.first_query + last), first_row = b * n.queries + first;
  for (int64_t key = 0; key < edge; key += kKeys) {
    head_sums(p, q,
              {.first_row = first_row,
               .queries = last - first,
               .keys = kv + (b * n.keys + key) * n.width,
               .count = std::min(kKeys, edge - key),
               .mass = p.target + first_row * n.places + key,
               .stride = n.places},
              scratch.products.data());
  }
  for (int64_t row = first_row; row < first_row + last - first; ++row) {
    const Places<T> places(p, row);
    for (size_t i = 0; i < places.key.size(); ++i) {
      scratch.mass.data()[i] = p.target[row * n.places + places.place[i]];
    }
    finish_row(p, row, places, scratch.mass.data(), scratch);
  }
}

template <typename T>
void kl(const KlParams<T>& p) {
  const KlSizes& n = p.sizes;
  const bool is_sparse = p.topk != nullptr;
  const Widened q(p.q, n.batch * n.queries * n.heads * n.width);
  const Widened kv(p.kv, n.batch * n.keys * n.width);
  const int64_t block = is_sparse ? 1 : std::max<int64_t>(kRows / std::max<int64_t>(n.heads, 1), 1);
  const int64_t blocks = (n.queries + block - 1) / block;
  parallel_for(n.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(block * n.heads, is_sparse ? n.places : kKeys,
                          is_sparse ? n.places * n.width : 0, n.places);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % blocks * block;
      if (is_sparse) {
        sparse_row(p, i, q.data(), kv.data(), scratch);
      } else {
        dense_rows(p, i / blocks, first, std::min(first + block, n.queries), q.data(), kv.data(),
                   scratch);
      }
    }
  });
}

const auto run = [](const auto& params) { kl(params); };

using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Four kl_sparse(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& lse,
               const at::Tensor& scores, const at::Tensor& topk, double scale) {
  return run_kl("kl_sparse", {q, kv, lse, scores}, {.tensor = topk, .is_sparse = true}, scale, run);
}

Four kl_dense(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& lse,
              const at::Tensor& scores, const at::Tensor& mask, int64_t first_query, double scale) {
  const KlKeys keys{.tensor = mask, .is_sparse = false, .first_query = first_query};
  return run_kl("kl_dense", {q, kv, lse, scores}, keys, scale, run);
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("kl_sparse", &kl_sparse);
  m.impl("kl_dense", &kl_dense);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
