#include "harness/cases/measuring.h"

#include <memory>
#include <optional>
#include <vector>

#include "harness/judge/decisions/keys.h"
#include "harness/judge/measure/metrics.h"

namespace dsv32::harness {
namespace {

class Measuring {
 public:
  Measuring(const Trace& oracle, const Trace* in_force, const ModelConfig& config,
            const Batch& batch)
      : oracle_(oracle), in_force_(in_force), config_(config), batch_(batch) {}

  std::optional<TapDistance> operator()(const std::string& name, const HostTensor& value) {
    const HostTensor* truth = oracle_.find(name);
    const auto tap = parse_tap(name);
    if (truth == nullptr || !tap) return std::nullopt;
    const bool over_keys = tap->info.kind == TapKind::attention || tap->info.kind == TapKind::keys;
    return distance_of(*tap, value, *truth, batch_, over_keys ? support(*tap->layer) : nullptr);
  }

 private:
  /// Attended keys of a layer; kept for the layer at hand.
  const std::vector<uint8_t>* support(int64_t layer) {
    if (layer != layer_) {
      const std::string name = layer_tap(layer, "topk");
      const HostTensor* topk = in_force_ == nullptr ? nullptr : in_force_->find(name);
      if (topk == nullptr) topk = oracle_.find(name);
      support_ = attended_keys(config_, batch_, topk);
      layer_ = layer;
    }
    return &support_;
  }

  const Trace& oracle_;
  const Trace* in_force_;
  const ModelConfig& config_;
  const Batch& batch_;
  int64_t layer_ = -1;
  std::vector<uint8_t> support_;
};

}  // namespace

decltype(RunOptions::measure) measured_against(const Trace& oracle, const Trace* in_force,
                                               const ModelConfig& config, const Batch& batch) {
  const auto measuring = std::make_shared<Measuring>(oracle, in_force, config, batch);
  return [measuring](const std::string& name, const HostTensor& value) {
    return (*measuring)(name, value);
  };
}

}  // namespace dsv32::harness
