#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/io/io.h"

namespace dsv32::harness {

/// A tensor of a merged checkpoint that is not base + alpha / rank B A.
struct WrongMerge {
  std::string tensor;
  std::string name, words;  // of the fault that gives these values; "" when none does
  double kept = 0;          // as MergeReport::kept, of this tensor
};

struct MergeReport {
  int64_t adapted = 0, others = 0;  // tensors with an adapter; without
  /// How much of what the adapter adds is in the merged weights: 1 is all of it. FP8 may be too
  /// coarse for it: then a right merge keeps less.
  double kept = 0;
  std::vector<WrongMerge> wrong;
  std::vector<std::string> changed;  // tensors without an adapter that are not the base's
  bool good() const { return wrong.empty() && changed.empty(); }
};

/// Holds a merged checkpoint against its base and the adapter, tensor by tensor: the values must be
/// those of the merge as the type that stores them holds it, FP8 under the scales that it has.
/// `progress` is called before each tensor and may throw to stop.
MergeReport check_merge(const ModelConfig& config, const io::Adapter& adapter,
                        const WeightSource& base, const WeightSource& merged,
                        const std::function<void(const std::string&)>& progress = {});

}  // namespace dsv32::harness
