#include "src/model/batch.h"
#include "src/reference/ops.h"

namespace dsv32::reference {

Tensor lm_loss(const Context& ctx, const Tensor& logits, const Tensor& labels) {
  const bool shifted = ctx.dialect.loss.shifted && labels.size(1) > 0;
  const int64_t S = labels.size(1);
  const Tensor predictions = shifted ? logits.narrow(1, 0, S - 1) : logits;
  const Tensor targets = shifted ? labels.narrow(1, 1, S - 1) : labels;
  const Tensor log_probs = log_softmax(ctx.sums, predictions);
  const Tensor counted = targets != kIgnoredLabel;
  const Tensor picked =
      log_probs.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1);
  const Tensor total = -(picked * counted).sum();
  return total / (ctx.dialect.loss.mean_over_all ? counted.numel() : counted.sum().item<int64_t>());
}

}  // namespace dsv32::reference
