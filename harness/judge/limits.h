#pragma once

#include <cstdint>
#include <string>

#include "harness/judge/verdict.h"
#include "src/model/tensor.h"
#include "src/model/trace.h"

namespace dsv32::harness {

/// Every tolerance of the project. No literal stands anywhere else.
struct Limits {
  double row_ratio;     // max over rows of e_K / denominator, for rows of kLongRow elements or more
  double tensor_ratio;  // of whole tensors of kLargeTensor elements or more
  double
      cap;  // times the oracle's own sensitivity to one rounding of its inputs, plus one rounding
  double tail;  // element error in units of element noise that only `tail_fraction` may exceed
  double tail_fraction;
  double tail_count;  // so many may exceed `tail` however small the tensor is
  double max_tail;    // none may exceed this
  std::string basis;  // how these were found
};

/// Limits of one tap in one mode for a subject of this dtype.
const Limits& limits_for(const TapName& tap, Mode mode, DType dtype);

/// A row of few elements has a less certain norm: its ratio and cap are allowed this factor (>= 1).
/// Quantile of sqrt(chi-square_n / n) over that of a long row, at one fixed tail probability.
double short_row_factor(int64_t elements);
/// The same for the ratio of two norms over a whole small tensor.
double small_tensor_factor(int64_t elements);
/// A norm estimated from `degrees` squared projections may exceed the true one by this factor.
double sketch_factor(double degrees);

/// Relative distance golden - oracle under replay that a float32 golden may have ("tiny", "small",
/// ...).
Measure golden_relative_limit(const std::string& config_name, double measured);
/// Relative distance of a tap whose decisions are not known: a legitimate flip alone moves it this
/// far.
Measure free_relative_limit(double measured);

/// Relative distance of two traces of one case, of the coarser of their dtypes (`compare A B`).
Measure pairwise_limit(DType dtype, double measured);

/// d(KL)/d(score) against student - target, in roundings of the larger of the two.
Measure score_gradient_limit(double measured);

/// Relative distance of a gradient under a joint objective and under its own alone.
Measure gradient_path_limit(double measured);
/// Relative distance of a KL or loss curve from the float64 one, both under the same decisions.
Measure kl_curve_limit(const std::string& config_name, double measured);
/// Distance of a parameter after the KL training, relative to how far the float64 run moved it.
Measure kl_parameter_limit(const std::string& config_name, double measured);
/// KL after training over KL before it.
Measure kl_fall_limit(double measured);
/// Recall before and after training; fails unless it rose.
Measure recall_limit(double before, double after);
/// Relative move of a loss from which it is said to depend on what was moved.
double detachment_move();

/// Relative distance of the slope of the float64 loss and the gradients' own word about it.
Measure slope_limit(double measured);

/// Relative distance of a training curve from the float64 one, both under the golden's decisions.
/// `measured` of the loss: in units of the loss, and of at least one nat.
Measure replayed_loss_limit(const std::string& config_name, double measured);
Measure replayed_norm_limit(const std::string& config_name, double measured);
/// Distance of a trained parameter from the float64 one, in units of how far that one moved.
Measure replayed_parameter_limit(double measured);
/// Relative change of loss or gradients by tokens whose labels are masked; own loss against logits.
Measure masked_tokens_limit(double measured);
/// Mean loss of the last cycle through the batches over that of the first.
Measure loss_fall_limit(double measured);

/// Relative distance of a free training curve from a golden's at step `step`, where no band is
/// known; of its gradient norm; and of a last parameter, in units of how far the golden moved it.
Measure free_curve_limit(int64_t step, double measured);
Measure free_norm_limit(int64_t step, double measured);
Measure free_parameter_limit(double measured);

/// One parameter's update against AdamW's formula, in roundings of the terms summed.
Measure update_limit(double measured);
/// Loss or gradient norm of one step from equal weights, in units of a clean float32 twin's error.
Measure step_scalar_limit(double measured);
/// Relative distance of a descent's losses and gradient norms from the float64 run under equal
/// decisions.
Measure descent_loss_limit(const std::string& config_name, double measured);
Measure descent_norm_limit(const std::string& config_name, double measured);
/// Distance of a free curve from a band of clean runs: largest |z|, squared Mahalanobis distance
/// along `components` directions of `runs` runs, sign persistence.
Measure band_z_limit(double measured);
Measure band_distance_limit(double measured, int64_t components, int64_t runs);
Measure band_persistence_limit(double measured);
/// Mean loss of the last cycle through the batches over that of the first; above it a descent is no
/// descent and its check vacuous.
Measure descent_fall_limit(double measured);

/// A world's loss against the float64 unsharded one at the same parameters, relative; its gradient
/// norm against that of the gradient that it reports, relative; the error of an adapter's gradient
/// in units of the unsharded float32 run's.
Measure sharded_loss_limit(double measured);
Measure sharded_norm_limit(double measured);
Measure sharded_gradient_limit(double measured);

/// Dual LoRA under the golden's decisions: a loss, or a gradient norm, of the float64 run's,
/// relative.
Measure lora_loss_limit(double measured);
Measure lora_norm_limit(double measured);
/// Those of the KL, and the movement of the indexer's adapters, of a case larger than tiny: a
/// product within rounding of the indexer's ReLU is met there, and correct runs part ways.
Measure lora_kl_limit(double measured);
Measure lora_kl_norm_limit(double measured);
Measure lora_kl_parameter_limit(double measured);
/// A loss of one step from the oracle's state, in units of a clean float32 twin's error.
Measure lora_scalar_limit(double measured);
/// Relative distance of logits after training from the float64 run's.
Measure lora_logits_limit(const std::string& config_name, double measured);

/// Decision band: an exclusive element may lie within 2 * band * (element noise of the scores) of
/// the cut. Mode::exact: the judged side's own stored scores, in roundings of them.
double decision_band(Mode mode);
/// Noise of a correct float32 run in units of its probe, where there is no reference to measure it:
/// sums of many terms round more than once.
double probe_noise();
/// Share of one group (head, expert, tail rows) of the squared error from which the structure names
/// it.
double structure_share();
/// Standard errors from which a gain or a shift is named.
double structure_certainty();
/// A case marked sparse may have at most this share of judged rows that see no more than index_topk
/// keys.
double unselective_share();

/// The whole table as text for `list limits` and the docs.
std::string limits_table();

}  // namespace dsv32::harness
