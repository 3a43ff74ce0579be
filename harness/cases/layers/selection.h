#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/model/segment.h"

/// Which parts of the model a streamed run judges.
namespace dsv32::harness {

struct LayerSelection {
  std::vector<int64_t> layers;  // ascending
  bool embed = false, head = false;
};

/// Words of --layers: layer numbers, "embed", "head"; throws Error (usage) for a number out of
/// range, a repeated word, another word or none at all.
LayerSelection parse_layers(const std::string& words, const ModelConfig& config);
/// The whole model.
LayerSelection every_layer(const ModelConfig& config);

/// Segments that hand their residual stream on.
struct SegmentChain {
  std::vector<Segment> segments;
  /// The synthetic stream that it begins with is that before this layer; nullopt: the embedding.
  std::optional<int64_t> begins_at;
};
/// Each maximal run of consecutive parts is a chain. docs/formats.md 6.
std::vector<SegmentChain> chains_of(const LayerSelection& selection, const ModelConfig& config);

/// The weights of the selection, in the model's order.
std::vector<WeightSpec> selected_specs(const LayerSelection& selection, const ModelConfig& config);

/// "layers 0, 3 and 60", "embedding, layers 0 to 60, head".
std::string describe(const LayerSelection& selection);

}  // namespace dsv32::harness
