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
};

}  // namespace dsv32::training
