#include "src/optimized/ops/embedding.h"

#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "src/optimized/cpu/parallel.h"
#include "src/optimized/cpu/rows.h"

namespace dsv32::optimized::cpu {
namespace {

/// The rows of the ids whose first position is in [begin, end).
template <typename T>
void add_rows(const EmbeddingBackwardParams<T>& p, int64_t begin, int64_t end) {
  std::vector<float> sum(p.hidden), row(p.hidden);
  for (int64_t first = begin; first < end; ++first) {
    const int64_t id = p.ids[first];
    if (first > 0 && p.ids[first - 1] == id) continue;
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t i = first; i < p.tokens && p.ids[i] == id; ++i) {
      widen(p.dout + p.order[i] * p.hidden, row.data(), p.hidden);
      add(row.data(), sum.data(), p.hidden);
    }
    narrow(sum.data(), p.dweight + id * p.hidden, p.hidden);
  }
}

at::Tensor embedding_backward(const at::Tensor& dout, const at::Tensor& ids, int64_t vocab) {
  return run_embedding_backward(dout, ids, vocab, [](const auto& p) {
    parallel_for(p.tokens, row_grain(p.hidden),
                 [&](int64_t begin, int64_t end) { add_rows(p, begin, end); });
  });
}

TORCH_LIBRARY_IMPL(dsv32, CPU, m) { m.impl("embedding_backward", &embedding_backward); }

}  // namespace
}  // namespace dsv32::optimized::cpu
