#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/cases/layers/options.h"
#include "harness/cases/layers/sides.h"

/// The backward pass of a streamed run: back over the segments that all sides have gone over.
namespace dsv32::harness {

/// Goes back over one chain of segments, from the last layer's made-up gradient. Each side keeps
/// the stream before each segment (Side::inputs); the experts of a layer go a few at a time, their
/// gradients are compared on all sides and dropped.
class BackwardChain {
 public:
  BackwardChain(LayerSides& sides, const LayerRunOptions& options)
      : sides_(sides), options_(options) {}

  /// `last`: the layer that the gradient is behind of.
  void begin(int64_t last);
  /// `decisions`: of the leading run in this segment. `what`: for people.
  void judge(const Segment& segment, const Trace& decisions, const std::string& what);
  /// Nobody needs the gradients any more.
  void end();

 private:
  void judge_part(const std::vector<std::string>& gradients);
  void judge_own(Judged& one, const Trace& own, const YardstickTraces& traces,
                 const std::vector<std::string>& gradients);
  Verdict judge_input(const Judged& one, const Evidence& evidence);
  std::vector<Verdict> judge_updates(const Judged& one, const Trace& own,
                                     const std::vector<std::string>& gradients);
  Verdict judge_update(const Judged& one, const std::string& weight, const HostTensor& gradient);
  DType first_mode() const;

  LayerSides& sides_;
  const LayerRunOptions& options_;
  double scale_ = 0;  // largest norm of a gradient of the layer so far
  std::map<Subject, std::vector<Verdict>> updates_;  // of the segment at hand
};

/// Tap of the residual stream before a segment: "embed", "layers.2.hidden", "layers.3.attn.out"
/// (whose gradient is that of the sum that it goes into).
std::string stream_tap_before(const Segment& segment);

}  // namespace dsv32::harness
