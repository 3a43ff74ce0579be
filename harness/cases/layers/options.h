#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/cases/layers/selection.h"
#include "harness/judge/adamw.h"
#include "harness/judge/verdict.h"
#include "src/model/tensor.h"

/// What a streamed run is asked for, and what it tells on its way.
namespace dsv32::harness {

/// What one segment took.
struct SegmentCost {
  Segment segment;
  size_t done = 0, of = 0;  // segments
  double seconds = 0;
  bool backward = false;
};

/// What a streamed run has reached: enough for another run of the same job to go on from there.
struct LayerProgress {
  size_t segments = 0;                                         // that are done
  std::vector<std::vector<Verdict>> staged = {}, forced = {};  // by subject
  std::map<std::string, HostTensor> streams = {};  // of every side, behind the last of them
};

/// One AdamW step of weights in a streamed run, from zero moments and without clipping.
struct LayerStep {
  AdamWStep numbers = {};
  /// The parameter [float32] behind the step, as this implementation makes it. Empty: no step.
  std::function<HostTensor(const std::string& impl, const std::string& weight,
                           const HostTensor& parameter, const HostTensor& gradient)>
      run = {};
};

/// How a streamed run goes about it.
struct LayerRunOptions {
  LayerSelection selection;
  bool staged = true;
  bool forward = true;  // forward taps are judged
  /// Each chain goes back again, from the gradient stream of its last layer (docs/formats.md 6).
  bool backward = false;
  LayerStep step = {};  // behind each gradient
  /// The second end of the noise floor: sums one after the other, which no fast library makes.
  bool twins = true;
  std::function<void(const SegmentCost&)> finished = {};  // after each segment
  std::optional<LayerProgress> from = {};                 // where an earlier run stood
  /// After each layer; of a run that goes back, after each chain.
  std::function<void(const LayerProgress&)> reached = {};
};

}  // namespace dsv32::harness
