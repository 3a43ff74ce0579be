#include "src/model/batch.h"
#include "src/reference/ops.h"

namespace dsv32::reference {
namespace {

/// How far the labels are ahead of the logits.
int64_t shift_of(const LossVariant& variant) {
  return variant.shifted ? (variant.shifted_twice ? 2 : 1) : 0;
}

}  // namespace

namespace {

/// Logits [B,S-shift,*] that have a target, and the targets.
Tensor predictions_of(const Context& ctx, const Tensor& logits, int64_t S) {
  const int64_t shift = std::min<int64_t>(S, shift_of(ctx.dialect.loss));
  return logits.narrow(1, 0, S - shift);
}
Tensor targets_of(const Context& ctx, const Tensor& labels) {
  const int64_t S = labels.size(1), shift = std::min<int64_t>(S, shift_of(ctx.dialect.loss));
  return labels.narrow(1, shift, S - shift);
}

/// The mean of the counted -log_probs, which are 0 elsewhere.
Tensor mean_loss(const Context& ctx, const Tensor& picked, const Tensor& counted) {
  const Tensor total = -(picked * counted).sum();
  return total / (ctx.dialect.loss.mean_over_all ? counted.numel() : counted.sum().item<int64_t>());
}

}  // namespace

Tensor lm_loss(const Context& ctx, const Tensor& logits, const Tensor& labels) {
  const Tensor targets = targets_of(ctx, labels);
  const Tensor log_probs = log_softmax(ctx.sums, predictions_of(ctx, logits, labels.size(1)));
  const Tensor counted = targets != kIgnoredLabel;
  const Tensor picked =
      log_probs.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1);
  return mean_loss(ctx, picked, counted);
}

BlockedLoss::BlockedLoss(const Context& ctx, const Tensor& labels)
    : ctx_(ctx), S_(labels.size(1)), targets_(targets_of(ctx, labels)) {
  largest_ = torch::full(targets_.sizes(), -std::numeric_limits<double>::infinity(), ctx.real());
  sum_ = torch::zeros(targets_.sizes(), ctx.real());
  picked_ = torch::zeros(targets_.sizes(), ctx.real());
}

void BlockedLoss::add(const Tensor& logits, int64_t first) {
  const Tensor block = predictions_of(ctx_, logits, S_);
  const Tensor largest = torch::maximum(largest_, block.amax(-1));
  sum_ = sum_ * torch::exp(largest_ - largest) + torch::exp(block - largest.unsqueeze(-1)).sum(-1);
  largest_ = largest;
  const Tensor place = targets_ - first;
  const Tensor here = (place >= 0) & (place < block.size(-1));
  const Tensor found = block.gather(-1, place.masked_fill(~here, 0).unsqueeze(-1)).squeeze(-1);
  picked_ = torch::where(here, found, picked_);
}

Tensor BlockedLoss::loss() const {
  return mean_loss(ctx_, picked_ - largest_ - torch::log(sum_), targets_ != kIgnoredLabel);
}

}  // namespace dsv32::reference
