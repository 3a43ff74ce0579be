#include "src/reference/ops.h"

namespace dsv32::reference {

Tensor select_topk(const Tensor& scores, int64_t k) {
  const int64_t T = scores.size(-1);
  // A stable descending sort keeps equal scores in index order, and -0 == +0 in its comparison.
  const auto [sorted, order] = torch::sort(scores, /*stable=*/true, -1, /*descending=*/true);
  const int64_t taken = std::min(k, T);
  Tensor picks = order.narrow(-1, 0, taken).clone();
  picks.masked_fill_(torch::isneginf(sorted.narrow(-1, 0, taken)), -1);
  if (taken == k) return picks;
  return torch::constant_pad_nd(picks, {0, k - taken}, -1);
}

Tensor support_of(const Tensor& topk, int64_t T) {
  auto shape = topk.sizes().vec();
  shape.back() = T + 1;  // the last column takes the -1 picks
  Tensor support = torch::zeros(shape, torch::dtype(torch::kBool).device(topk.device()));
  support.scatter_(-1, topk.masked_fill(topk < 0, T), true);
  return support.narrow(-1, 0, T);
}

}  // namespace dsv32::reference
