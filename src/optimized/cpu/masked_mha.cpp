#include "src/optimized/ops/masked_mha.h"

#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "src/optimized/cpu/gemm.h"
#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/softmax.h"

namespace dsv32::optimized::cpu {
namespace {

// Queries of a block: a product of full speed whose scores stay in the cache.
constexpr int64_t kQueryBlock = 64;
constexpr int64_t kWordKeys = 32;
constexpr float kHidden = -std::numeric_limits<float>::infinity();

/// The inputs in float32.
struct Inputs {
  Widened q, k_nope, k_rope, v;
  const int32_t* support;
  MhaShape shape;
  float scale;

  template <typename Params>
  explicit Inputs(const Params& p)
      : q(p.q, p.shape.batch * p.shape.queries * p.shape.heads * p.shape.width()),
        k_nope(p.k_nope, p.shape.batch * p.shape.keys * p.shape.heads * p.shape.nope),
        k_rope(p.k_rope, p.shape.batch * p.shape.keys * p.shape.rope),
        v(p.v, p.shape.batch * p.shape.keys * p.shape.heads * p.shape.value),
        support(p.support),
        shape(p.shape),
        scale(p.scale) {}
};

/// Queries [first, first + rows) of one head.
struct Block {
  int64_t b;
  int64_t head;
  int64_t first;
  int64_t rows;
};

/// Keys [first, first + count), whose scores are the columns from `column` on.
struct Run {
  int64_t first;
  int64_t count;
  int64_t column;
};

struct Runs {
  std::vector<Run> runs;
  int64_t columns = 0;
};

/// Row of a query [B,S,H] or a key [B,T,H].
int64_t query_row(const MhaShape& shape, const Block& block) {
  return (block.b * shape.queries + block.first) * shape.heads + block.head;
}
int64_t key_row(const MhaShape& shape, const Block& block, int64_t key) {
  return (block.b * shape.keys + key) * shape.heads + block.head;
}

/// The keys that some query of the block sees, in whole words: nothing else is computed.
Runs seen_runs(const Inputs& in, const Block& block) {
  const MhaShape& shape = in.shape;
  const int64_t words = shape.words();
  const int32_t* rows = in.support + (block.b * shape.queries + block.first) * words;
  Runs seen;
  for (int64_t word = 0; word < words; ++word) {
    int32_t bits = 0;
    for (int64_t row = 0; row < block.rows; ++row) bits |= rows[row * words + word];
    if (bits == 0) continue;
    const int64_t first = word * kWordKeys, count = std::min(kWordKeys, shape.keys - first);
    const bool goes_on =
        !seen.runs.empty() && seen.runs.back().first + seen.runs.back().count == first;
    if (goes_on) {
      seen.runs.back().count += count;
    } else {
      seen.runs.push_back({first, count, seen.columns});
    }
    seen.columns += count;
  }
  return seen;
}

/// scores [rows, columns] = scale q k, -inf where a bit is clear.
void score_keys(const Inputs& in, const Block& block, const Runs& seen, float* scores) {
  const MhaShape& shape = in.shape;
  const int64_t width = shape.width(), q_stride = shape.heads * width, n = seen.columns;
  const float* q = in.q.data() + query_row(shape, block) * width;
  for (const Run& run : seen.runs) {
    const float* nope = in.k_nope.data() + key_row(shape, block, run.first) * shape.nope;
    const float* rope = in.k_rope.data() + (block.b * shape.keys + run.first) * shape.rope;
    gemm({block.rows, run.count, shape.nope}, in.scale, {q, q_stride},
         {nope, shape.heads * shape.nope, true}, 0, scores + run.column, n);
    gemm({block.rows, run.count, shape.rope}, in.scale, {q + shape.nope, q_stride},
         {rope, shape.rope, true}, 1, scores + run.column, n);
  }
  const int64_t words = shape.words();
  const int32_t* bits = in.support + (block.b * shape.queries + block.first) * words;
  for (int64_t row = 0; row < block.rows; ++row) {
    for (const Run& run : seen.runs) {
      for (int64_t i = 0; i < run.count; i += kWordKeys) {
        const auto word = static_cast<uint32_t>(bits[row * words + (run.first + i) / kWordKeys]);
        if (word == ~0u) continue;
        hide_clear_bits(word, scores + row * n + run.column + i,
                        std::min(kWordKeys, run.count - i));
      }
    }
  }
}

template <typename T>
void forward_block(const MaskedMhaParams<T>& p, const Inputs& in, const Block& block,
                   float* scores) {
  const MhaShape& shape = in.shape;
  const int64_t value = shape.value, row0 = query_row(shape, block);
  const Runs seen = seen_runs(in, block);
  if (seen.columns > 0) score_keys(in, block, seen, scores);
  std::vector<float> sums(block.rows);
  for (int64_t row = 0; row < block.rows; ++row) {
    p.lse[row0 + row * shape.heads] =
        softmax_numerators(scores + row * seen.columns, seen.columns, &sums[row]);
  }
  std::vector<float> out(block.rows * value);
  for (const Run& run : seen.runs) {
    const float* v = in.v.data() + key_row(shape, block, run.first) * value;
    gemm({block.rows, value, run.count}, 1, {scores + run.column, seen.columns},
         {v, shape.heads * value}, 1, out.data(), value);
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    float* mean = out.data() + row * value;
    scale(sums[row] == 0 ? 0.0f : 1.0f / sums[row], mean, mean, value);
    narrow(mean, p.out + (row0 + row * shape.heads) * value, value);
  }
}

template <typename T>
void forward(const MaskedMhaParams<T>& p) {
  const MhaShape& shape = p.shape;
  const Inputs in(p);
  const int64_t blocks = (shape.queries + kQueryBlock - 1) / kQueryBlock;
  parallel_for(shape.batch * shape.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const Buffer scores(kQueryBlock * shape.keys);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks, first = i % blocks * kQueryBlock;
      const int64_t rows = std::min(kQueryBlock, shape.queries - first);
      forward_block(p, in, {head / shape.heads, head % shape.heads, first, rows}, scores.data());
    }
  });
}

/// Memory of one thread. dk and dv are the sums of one head over all queries.
struct Workspace {
  Buffer probs, dscores, dq, dk, dv;

  explicit Workspace(const MhaShape& shape)
      : probs(kQueryBlock * shape.keys),
        dscores(kQueryBlock * shape.keys),
        dq(kQueryBlock * shape.width()),
        dk(shape.keys * shape.width()),
        dv(shape.keys * shape.value) {}
};

/// Scores become probabilities, the products dout . v in `dscores` their gradients.
template <typename T>
void softmax_backward(const MaskedMhaBackwardParams<T>& p, const Block& block, int64_t n,
                      const float* dout, const Workspace& space) {
  const MhaShape& shape = p.shape;
  const int64_t row0 = query_row(shape, block), stride = shape.heads * shape.value;
  std::vector<float> out(shape.value);
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t at = row0 + row * shape.heads;
    float *prob = space.probs.data() + row * n, *dscore = space.dscores.data() + row * n;
    if (p.lse[at] == kHidden) {
      std::fill_n(prob, n, 0.0f);
    } else {
      exp_minus(prob, p.lse[at], prob, n);
    }
    widen(p.out + at * shape.value, out.data(), shape.value);
    const float delta = dot(dout + row * stride, out.data(), shape.value);
    softmax_gradient(p.scale, prob, dscore, delta, dscore, n);
  }
}

template <typename T>
void backward_block(const MaskedMhaBackwardParams<T>& p, const Inputs& in, const float* all_dout,
                    const Block& block, const Workspace& space) {
  const MhaShape& shape = in.shape;
  const int64_t width = shape.width(), value = shape.value, row0 = query_row(shape, block);
  const int64_t q_stride = shape.heads * width, v_stride = shape.heads * value;
  const float *q = in.q.data() + row0 * width, *dout = all_dout + row0 * value;
  float *probs = space.probs.data(), *dscores = space.dscores.data(), *dq = space.dq.data();
  const Runs seen = seen_runs(in, block);
  const int64_t n = seen.columns;
  if (n > 0) score_keys(in, block, seen, probs);
  for (const Run& run : seen.runs) {
    const float* v = in.v.data() + key_row(shape, block, run.first) * value;
    gemm({block.rows, run.count, value}, 1, {dout, v_stride}, {v, v_stride, true}, 0,
         dscores + run.column, n);
  }
  softmax_backward(p, block, n, dout, space);

  std::fill_n(dq, block.rows * width, 0.0f);
  for (const Run& run : seen.runs) {
    const Factor dscore{dscores + run.column, n}, prob{probs + run.column, n};
    const float* nope = in.k_nope.data() + key_row(shape, block, run.first) * shape.nope;
    const float* rope = in.k_rope.data() + (block.b * shape.keys + run.first) * shape.rope;
    gemm({block.rows, shape.nope, run.count}, 1, dscore, {nope, shape.heads * shape.nope}, 1, dq,
         width);
    gemm({block.rows, shape.rope, run.count}, 1, dscore, {rope, shape.rope}, 1, dq + shape.nope,
         width);
    gemm({run.count, width, block.rows}, 1, {dscore.data, n, true}, {q, q_stride}, 1,
         space.dk.data() + run.first * width, width);
    gemm({run.count, value, block.rows}, 1, {prob.data, n, true}, {dout, v_stride}, 1,
         space.dv.data() + run.first * value, value);
  }
  for (int64_t row = 0; row < block.rows; ++row) {
    narrow(dq + row * width, p.dq + (row0 + row * shape.heads) * width, width);
  }
}

/// All queries of one head, in order: its gradients have one owner.
template <typename T>
void backward_head(const MaskedMhaBackwardParams<T>& p, const Inputs& in, const float* dout,
                   int64_t b, int64_t head, const Workspace& space) {
  const MhaShape& shape = in.shape;
  const int64_t width = shape.width();
  std::fill_n(space.dk.data(), shape.keys * width, 0.0f);
  std::fill_n(space.dv.data(), shape.keys * shape.value, 0.0f);
  for (int64_t first = 0; first < shape.queries; first += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, shape.queries - first);
    backward_block(p, in, dout, {b, head, first, rows}, space);
  }
  for (int64_t t = 0; t < shape.keys; ++t) {
    const int64_t row = key_row(shape, {b, head, 0, 0}, t);
    const float* dk = space.dk.data() + t * width;
    narrow(dk, p.dk_nope + row * shape.nope, shape.nope);
    std::copy_n(dk + shape.nope, shape.rope, p.dk_rope_heads + row * shape.rope);
    narrow(space.dv.data() + t * shape.value, p.dv + row * shape.value, shape.value);
  }
}

template <typename T>
void backward(const MaskedMhaBackwardParams<T>& p) {
  const MhaShape& shape = p.shape;
  if (shape.heads == 0) return;
  const Inputs in(p);
  const Widened dout(p.dout, shape.batch * shape.queries * shape.heads * shape.value);
  parallel_for(shape.batch * shape.heads, 1, [&](int64_t begin, int64_t end) {
    const Workspace space(shape);
    for (int64_t i = begin; i < end; ++i) {
      backward_head(p, in, dout.data(), i / shape.heads, i % shape.heads, space);
    }
  });
  const int64_t grain = row_grain(shape.rope * shape.heads);
  parallel_for(shape.batch * shape.keys, grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      float* heads = p.dk_rope_heads + token * shape.heads * shape.rope;
      for (int64_t h = 1; h < shape.heads; ++h) add(heads + h * shape.rope, heads, shape.rope);
      narrow(heads, p.dk_rope + token * shape.rope, shape.rope);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> masked_mha(const at::Tensor& q, const at::Tensor& k_nope,
                                              const at::Tensor& k_rope, const at::Tensor& v,
                                              const at::Tensor& support, double scale) {
  return run_masked_mha({q, k_nope, k_rope, v, support}, scale,
                        [](const auto& params) { forward(params); });
}

MhaGradients masked_mha_backward(const at::Tensor& dout, const at::Tensor& out,
                                 const at::Tensor& lse, const at::Tensor& q,
                                 const at::Tensor& k_nope, const at::Tensor& k_rope,
                                 const at::Tensor& v, const at::Tensor& support, double scale) {
  return run_masked_mha_backward({dout, out, lse}, {q, k_nope, k_rope, v, support}, scale,
                                 [](const auto& params) { backward(params); });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("masked_mha", &masked_mha);
  m.impl("masked_mha_backward", &masked_mha_backward);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
