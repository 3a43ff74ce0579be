#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "harness/judge/verdict.h"

/// One optimizer step against the formula of AdamW in double. No torch.
namespace dsv32::harness {

/// Numbers of a step that all its parameters share.
struct AdamWStep {
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  double clip_factor = 1;  // min(1, clip / (norm + 1e-6)), as torch clips
  int64_t count = 0;       // steps of the optimizer before this one
};

/// State of one parameter before a step (the oracle's values, rounded here to what the judged side
/// holds) and what the judged side made of it.
struct AdamWTensors {
  std::span<const double> parameter;      // before
  std::span<const double> first, second;  // moments before; empty: none yet
  std::span<const float> gradient;        // the judged side's own, before clipping
  std::span<const float> updated;         // the judged side's parameter after the step
};

/// The element whose new value is farthest from the formula.
struct UpdateError {
  double roundings = 0;  // |got - expected| over the size of one float32 rounding; NaN stays
  int64_t element = -1;
  double expected = 0, got = 0;  // values of the parameter after the step
};

/// Decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2): p (1 - lr wd) - lr / (1 -
/// beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps), m and v updated from the clipped gradient. One
/// rounding is float32's epsilon times the sizes of the terms that are summed, so that cancellation
/// is no error.
UpdateError check_update(const AdamWStep& step, const AdamWTensors& tensors);

/// The verdict of the check `name` about such an error among `checked` elements, without a subject.
Verdict update_verdict(const std::string& name, const UpdateError& error, int64_t checked);

/// A first step, before which there are no moments; all in float32.
struct FirstUpdate {
  std::span<const float> parameter, gradient, updated;
};
Verdict judge_first_update(const std::string& name, const AdamWStep& step,
                           const FirstUpdate& update);

}  // namespace dsv32::harness
