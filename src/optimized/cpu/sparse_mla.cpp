#include "src/optimized/ops/sparse_mla.h"

#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "src/optimized/cpu/gemm.h"
#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/softmax.h"

namespace dsv32::optimized::cpu {
namespace {

// Rows of a dense task: enough for a product at full speed, few enough for its scores.
constexpr int64_t kDenseRows = 128;
// Partial sums of dkv: a fixed number, so that the bits do not depend on the thread count.
constexpr int64_t kGroups = 8;

/// Queries [first, last) of batch b, which are worked on together, and the keys they see.
struct Task {
  int64_t b;
  int64_t first;
  int64_t last;
};

struct Keys {
  const float* rows;  // [count, width]
  int64_t count;
  std::vector<int32_t> index;  // row i is key index[i]; empty: key i
};

/// Queries of one task: the heads of one query share a list, all rows share the dense keys.
int64_t queries_per_task(const KeyLists& lists, const MlaShape& shape) {
  return lists.is_dense ? std::max<int64_t>(kDenseRows / std::max<int64_t>(shape.heads, 1), 1) : 1;
}

/// Late queries see more keys: this order gives the threads, which take neighbours, equal work.
int64_t balanced(int64_t i, int64_t count) { return i % 2 == 0 ? i / 2 : count - 1 - i / 2; }

/// Selects the keys of a task from kv [T,width] of its batch; `gathered` holds listed ones.
Keys keys_of(const KeyLists& lists, const MlaShape& shape, const Task& task, const float* kv,
             float* gathered) {
  if (lists.is_dense) {
    return {kv, std::min(shape.keys, lists.first_query + task.last), {}};
  }
  Keys keys{gathered, 0, {}};
  const int32_t* list = lists.topk + (task.b * shape.queries + task.first) * lists.slots;
  for (int64_t i = 0; i < lists.slots; ++i) {
    if (list[i] < 0) continue;
    std::copy_n(kv + list[i] * shape.width, shape.width, gathered + keys.count++ * shape.width);
    keys.index.push_back(list[i]);
  }
  return keys;
}

/// -inf where a dense query does not see a key. scores: [rows of the task, count].
void hide_keys(const KeyLists& lists, const MlaShape& shape, const Task& task, int64_t count,
               float* scores) {
  if (!lists.is_dense) return;
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  const bool* mask = lists.mask + task.b * shape.keys;
  std::vector<int64_t> holes;
  for (int64_t t = 0; t < count; ++t) {
    if (!mask[t]) holes.push_back(t);
  }
  for (int64_t s = task.first; s < task.last; ++s) {
    const int64_t end = std::min(lists.first_query + s + 1, count);
    for (int64_t head = 0; head < shape.heads; ++head, scores += count) {
      std::fill(scores + end, scores + count, kHidden);
      for (const int64_t t : holes) scores[t] = kHidden;
    }
  }
}

/// scores = scale q kv^T, -inf where hidden.
void score_keys(const KeyLists& lists, const MlaShape& shape, const Task& task, float scale,
                const float* q, const Keys& keys, float* scores) {
  const int64_t rows = (task.last - task.first) * shape.heads;
  gemm({rows, keys.count, shape.width}, scale, {q, shape.width}, {keys.rows, shape.width, true}, 0,
       scores, keys.count);
  hide_keys(lists, shape, task, keys.count, scores);
}

/// Memory of one thread for tasks of `rows` rows.
struct Workspace {
  Buffer gathered, scores, dprobs, result;

  Workspace(const KeyLists& lists, const MlaShape& shape, int64_t rows)
      : gathered(lists.is_dense ? 0 : lists.slots * shape.width),
        scores(rows * lists.slots),
        dprobs(rows * lists.slots),
        result(std::max(rows, lists.slots) * shape.width) {}
};

template <typename T>
void forward_task(const SparseMlaParams<T>& p, const Task& task, const float* kv,
                  const Workspace& space) {
  const MlaShape& shape = p.shape;
  const int64_t rows = (task.last - task.first) * shape.heads, lora = shape.kv_lora;
  const int64_t row0 = (task.b * shape.queries + task.first) * shape.heads;
  const Keys keys = keys_of(p.lists, shape, task, kv, space.gathered.data());
  if (keys.count == 0) {
    std::fill_n(p.lse + row0, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(p.out + row0 * lora, rows * lora, T{});
    return;
  }
  const Widened q(p.q + row0 * shape.width, rows * shape.width);
  float* scores = space.scores.data();
  score_keys(p.lists, shape, task, p.scale, q.data(), keys, scores);
  std::vector<float> sums(rows);
  for (int64_t row = 0; row < rows; ++row) {
    p.lse[row0 + row] = softmax_numerators(scores + row * keys.count, keys.count, &sums[row]);
  }
  float* out = space.result.data();
  gemm({rows, lora, keys.count}, 1, {scores, keys.count}, {keys.rows, shape.width}, 0, out, lora);
  for (int64_t row = 0; row < rows; ++row) {
    scale(sums[row] == 0 ? 0.0f : 1.0f / sums[row], out + row * lora, out + row * lora, lora);
    narrow(out + row * lora, p.out + (row0 + row) * lora, lora);
  }
}

template <typename T>
void forward(const SparseMlaParams<T>& p) {
  const MlaShape& shape = p.shape;
  const int64_t step = queries_per_task(p.lists, shape);
  const int64_t tasks = (shape.queries + step - 1) / step;
  for (int64_t b = 0; b < shape.batch; ++b) {
    const Widened kv(p.kv + b * shape.keys * shape.width, shape.keys * shape.width);
    parallel_for(tasks, 1, [&](int64_t begin, int64_t end) {
      const Workspace space(p.lists, shape, step * shape.heads);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = balanced(i, tasks) * step;
        forward_task(p, {b, first, std::min(first + step, shape.queries)}, kv.data(), space);
      }
    });
  }
}

/// Adds the gradient of the task's keys to `dkv` [T,width].
void add_key_gradient(const MlaShape& shape, const Keys& keys, int64_t rows, const float* q,
                      const float* dout, const float* probs, const float* dscores, float* result,
                      float* dkv) {
  const int64_t width = shape.width, n = keys.count;
  const bool scatters = !keys.index.empty();
  float* to = scatters ? result : dkv;
  gemm({n, width, rows}, 1, {dscores, n, true}, {q, width}, scatters ? 0 : 1, to, width);
  gemm({n, shape.kv_lora, rows}, 1, {probs, n, true}, {dout, shape.kv_lora}, 1, to, width);
  if (!scatters) return;
  for (int64_t i = 0; i < n; ++i) add(result + i * width, dkv + keys.index[i] * width, width);
}

template <typename T>
void backward_task(const SparseMlaBackwardParams<T>& p, const Task& task, const float* kv,
                   const Workspace& space, float* dkv) {
  const MlaShape& shape = p.shape;
  const int64_t rows = (task.last - task.first) * shape.heads;
  const int64_t width = shape.width, lora = shape.kv_lora;
  const int64_t row0 = (task.b * shape.queries + task.first) * shape.heads;
  const Keys keys = keys_of(p.lists, shape, task, kv, space.gathered.data());
  if (keys.count == 0) {
    std::fill_n(p.dq + row0 * width, rows * width, T{});
    return;
  }
  const int64_t n = keys.count;
  const Widened q(p.q + row0 * width, rows * width), dout(p.dout + row0 * lora, rows * lora);
  const Widened out(p.out + row0 * lora, rows * lora);
  float *probs = space.scores.data(), *dscores = space.dprobs.data();
  score_keys(p.lists, shape, task, p.scale, q.data(), keys, probs);
  gemm({rows, n, lora}, 1, {dout.data(), lora}, {keys.rows, width, true}, 0, dscores, n);
  for (int64_t row = 0; row < rows; ++row) {
    float *prob = probs + row * n, *dscore = dscores + row * n;
    const float lse = p.lse[row0 + row];
    if (lse == -std::numeric_limits<float>::infinity()) {
      std::fill_n(prob, n, 0.0f);
    } else {
      exp_minus(prob, lse, prob, n);
    }
    const float delta = dot(dout.data() + row * lora, out.data() + row * lora, lora);
    softmax_gradient(p.scale, prob, dscore, delta, dscore, n);
  }
  float* dq = space.result.data();
  gemm({rows, width, n}, 1, {dscores, n}, {keys.rows, width}, 0, dq, width);
  narrow(dq, p.dq + row0 * width, rows * width);
  add_key_gradient(shape, keys, rows, q.data(), dout.data(), probs, dscores, space.result.data(),
                   dkv);
}

/// dkv of batch b from its partial sums [groups,T,width].
template <typename T>
void add_groups(const SparseMlaBackwardParams<T>& p, int64_t b, int64_t groups, float* partial) {
  const int64_t width = p.shape.width, keys = p.shape.keys;
  parallel_for(keys, row_grain(width * groups), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* sum = partial + t * width;
      for (int64_t g = 1; g < groups; ++g) add(partial + (g * keys + t) * width, sum, width);
      narrow(sum, p.dkv + (b * keys + t) * width, width);
    }
  });
}

template <typename T>
void backward(const SparseMlaBackwardParams<T>& p) {
  const MlaShape& shape = p.shape;
  if (shape.queries == 0) return;
  const int64_t step = queries_per_task(p.lists, shape), groups = std::min(kGroups, shape.queries);
  const int64_t elements = shape.keys * shape.width;
  const Buffer partial(groups * elements);
  for (int64_t b = 0; b < shape.batch; ++b) {
    const Widened kv(p.kv + b * elements, elements);
    parallel_for(groups, 1, [&](int64_t begin, int64_t end) {
      const Workspace space(p.lists, shape, step * shape.heads);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t g = balanced(i, groups);
        float* dkv = partial.data() + g * elements;
        std::fill_n(dkv, elements, 0.0f);
        const int64_t last = (g + 1) * shape.queries / groups;
        for (int64_t s = g * shape.queries / groups; s < last; s += step) {
          backward_task(p, {b, s, std::min(s + step, last)}, kv.data(), space, dkv);
        }
      }
    });
    add_groups(p, b, groups, partial.data());
  }
}

using Pair = std::tuple<at::Tensor, at::Tensor>;

const auto run_forward = [](const auto& params) { forward(params); };
const auto run_backward = [](const auto& params, const at::Tensor&) { backward(params); };

Pair sparse_mla(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& topk, double scale,
                int64_t kv_lora) {
  return run_mla("sparse_mla", q, kv, {topk, /*is_dense=*/false}, scale, kv_lora, run_forward);
}

Pair dense_mla(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& mask,
               int64_t first_query, double scale, int64_t kv_lora) {
  return run_mla("dense_mla", q, kv, {mask, /*is_dense=*/true, first_query}, scale, kv_lora,
                 run_forward);
}

// The sums are always in the same order here: deterministic or not.
Pair sparse_mla_backward(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                         const at::Tensor& q, const at::Tensor& kv, const at::Tensor& topk,
                         double scale, int64_t kv_lora, bool) {
  return run_mla_backward("sparse_mla_backward", {dout, out, lse}, q, kv,
                          {topk, /*is_dense=*/false}, scale, kv_lora, run_backward);
}

Pair dense_mla_backward(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                        const at::Tensor& q, const at::Tensor& kv, const at::Tensor& mask,
                        int64_t first_query, double scale, int64_t kv_lora, bool) {
  return run_mla_backward("dense_mla_backward", {dout, out, lse}, q, kv,
                          {mask, /*is_dense=*/true, first_query}, scale, kv_lora, run_backward);
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) {
  m.impl("sparse_mla", &sparse_mla);
  m.impl("dense_mla", &dense_mla);
  m.impl("sparse_mla_backward", &sparse_mla_backward);
  m.impl("dense_mla_backward", &dense_mla_backward);
}

}  // namespace
}  // namespace dsv32::optimized::cpu
