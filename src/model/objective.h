#pragma once

namespace dsv32 {

/// Which indexer KL a run computes (docs/spec.md 2).
enum class KlStage {
  none,
  warmup,  // Eq. 3: dense attention, every visible key
  sparse,  // Eq. 4: both distributions restricted to the selected keys
};

/// What a run differentiates: [LM] + kl_weight * KL. The two losses never share a gradient path.
struct Objective {
  bool lm = true;
  KlStage kl = KlStage::none;
  double kl_weight = 1;

  bool operator==(const Objective&) const = default;
};

}  // namespace dsv32
