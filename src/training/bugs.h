#pragma once

#include <string>
#include <vector>

namespace dsv32::training {

/// Bugs of training code that the suites must catch: planted in tests and never by a user.
/// Bugs of the model itself are dialect toggles (src/model/known_bugs.cpp).
enum class Bug {
  none,
  // loss_descent
  l2_decay,  // L2 in place of decoupled weight decay
  betas_swapped,
  no_bias_correction,
  clip_after_step,
  lr_1_05,  // learning rate times 1.05
  one_never_updated,
  gradients_not_zeroed,
  micro_batch_mean,  // mean over micro-batches wrong by 1/n
  batch_repeated,
  // sft_frozen_indexer
  indexer_tensor_trainable,  // one indexer tensor has a zero gradient in place of none
  decay_frozen,              // weight decay touches what has no gradient
  prompt_not_masked,         // labels without -100
  // dual_lora
  lora_placeholder_kl,    // a KL that is always 0
  lora_one_lr,            // one learning rate for both groups
  lora_wrong_projection,  // gate's adapter on up, up's on gate
  lora_scale_alpha,       // alpha in place of alpha / rank
  lora_transposed,        // (B A)^T where the shape lets it pass
  lora_merge_twice,
  lora_unmerge_subtracts,  // in place of keeping the base
  lora_kl_leak,            // the KL's gradient reaches LM adapters
  lora_expert_columns,     // fused experts: expert e of B is a block of columns, not every E-th one
  lora_expert_halves,      // fused experts: gate's rows of the adapter on up, up's on gate
  lora_kv_b_ignored,       // the model reads kv_b_proj without its adapter, as a cut made at load
  lora_target_ignored,     // the indexer's wq_b gets no adapter
  // sharded
  sum_instead_of_mean,  // over ranks
  last_shard_dropped,
  padding_in_norm,
  stale_parameters,  // rank 1 keeps its own
  gradient_accumulated_twice,
  clip_by_local_norm,
  token_mean,  // mean over all counted tokens in place of the mean of the ranks' means
};

/// The parameter that Bug::one_never_updated leaves out, of those that have a gradient.
const std::string& neglected(const std::vector<std::string>& parameters);

}  // namespace dsv32::training
