#include "src/model/batch.h"
#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// How far the labels are ahead of the logits.
int64_t shift_of(const LossVariant& variant) {
  return variant.shifted ? (variant.shifted_twice ? 2 : 1) : 0;
}

}  // namespace

Tensor lm_loss(const Context& ctx, const Tensor& logits, const Tensor& labels) {
  const int64_t S = labels.size(1);
  const int64_t shift = std::min<int64_t>(S, shift_of(ctx.dialect.loss));
  const Tensor predictions = logits.narrow(1, 0, S - shift);
  const Tensor targets = labels.narrow(1, shift, S - shift);
  const Tensor log_probs = log_softmax(ctx.sums, predictions);
  const Tensor counted = targets != kIgnoredLabel;
  const Tensor picked =
      log_probs.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1);
  const Tensor total = -(picked * counted).sum();
  return total / (ctx.dialect.loss.mean_over_all ? counted.numel() : counted.sum().item<int64_t>());
}

}  // namespace dsv32::reference
