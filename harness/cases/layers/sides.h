#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/cases/case_run.h"
#include "harness/cases/probe.h"
#include "src/io/scratch.h"

/// The runs of a streamed job: all go over one segment of the model before any goes on.
namespace dsv32::harness {

/// One run, the residual stream that it has reached, and on its way back the gradient by it.
struct Side {
  std::string what = {}, impl = {};
  RunOptions options = {};
  StreamState stream = {};
  std::vector<StreamState> inputs = {};  // of the segments that it has gone over
  StreamState gradient = {};
  std::map<int64_t, Dialect> backward_dialects = {};  // as JudgedTrace
};

/// The runs of one mode that a subject is measured against.
struct YardstickSides {
  Side oracle = {}, probe = {};
  std::optional<Side> reference = {}, twin = {};
};
struct YardstickTraces {
  Trace oracle = {}, probe = {};
  std::optional<Trace> reference = {}, twin = {};
};
Yardsticks yardsticks(const YardstickTraces& traces);

/// A subject on its way over the segments.
struct Judged {
  JudgedTrace about;
  Side side = {};
  YardstickSides staged = {};
  std::vector<Verdict> staged_verdicts = {}, forced_verdicts = {};
};

/// What all sides do next.
struct LayerPass {
  Segment segment = {};
  std::vector<Segment> coming = {};  // behind it, as far ahead as weights may be read
  std::string what = {};             // for people
  bool backward = false;
  std::optional<ExpertRange> experts = {};  // of a backward pass, as RunOptions
  bool taps = true;                         // else nothing but the stream and the decisions
};

class LayerSides {
 public:
  /// `twins`: as LayerRunOptions.
  LayerSides(const CaseRun& run, const std::vector<JudgedTrace>& subjects, bool twins);

  template <typename Visit>
  void for_each(Visit visit) {
    const auto visit_all = [&](YardstickSides& sides) {
      visit(sides.oracle);
      visit(sides.probe);
      if (sides.reference) visit(*sides.reference);
      if (sides.twin) visit(*sides.twin);
    };
    visit(lead);
    for (auto& [mode, sides] : forced) visit_all(sides);
    for (Judged& one : judged) {
      visit(one.side);
      visit_all(one.staged);
    }
  }
  /// With a name for each side's: "side3.".
  template <typename Visit>
  void for_each_stream(Visit visit) {
    int number = 0;
    for_each([&](Side& side) { visit("side" + std::to_string(number++) + ".", side.stream); });
  }

  /// All sides go on to this.
  void begin(LayerPass next);
  /// Makes the pass at hand. With an oracle: the run is measured against it, and its taps are
  /// dropped.
  Trace advance(Side& side, const Trace* oracle = nullptr, const Trace* in_force = nullptr);
  Trace drawn_out(Trace probe, const Trace& oracle) const {
    return harness::drawn_out(run_.the_case(), std::move(probe), oracle);
  }
  /// The runs of float64 and of the probe serve every dtype but fp8, which is another function:
  /// `first`, of the mode before. `led`: what the leading run gave; nullptr: it goes now.
  YardstickTraces forced_traces(DType mode, const Trace* led, const YardstickTraces* first);
  /// The subject's own trace of the pass, made under the decisions in force.
  Trace own_trace(Judged& one, const Trace& lead, const YardstickTraces& traces);
  /// The reference of this mode that others are measured with.
  Side& reference_of(DType mode) {
    return mode == DType::float32 ? lead : *forced.at(mode).reference;
  }
  /// Is it the very run that others of its dtype are measured with?
  bool is_reference_side(const JudgedTrace& subject) const;
  Evidence evidence_of(const Judged& one, const Trace& trace);
  /// A tensor that waits on disk where it is large.
  HostTensor rested(const HostTensor& value);

  const CaseRun& run() const { return run_; }

  LayerPass pass;
  Trace decisions;      // of the leading run, of the segment at hand
  io::Scratch waiting;  // large taps and streams
  Side lead;            // the reference in float32
  std::map<DType, YardstickSides> forced;
  std::vector<Judged> judged;

 private:
  Side side(std::string what, RunOptions options, std::string impl = "reference") const;
  bool has_reference_side(DType mode) const;
  bool needs_reference(DType mode) const;
  RunOptions under_decisions(DType dtype, const Dialect& dialect) const;
  YardstickSides sides(const std::string& mode, const std::string& of, const RunOptions& options,
                       bool reference) const;
  void add(const JudgedTrace& subject);
  void expect_weights();
  RunOptions backward_options(Side& side) const;
  RunOptions forward_options(Side& side) const;
  decltype(RunOptions::measure) resting(decltype(RunOptions::measure) measure);

  const CaseRun& run_;
  bool twins_;
  int done_ = 0, done_before_ = 0;  // passes over this segment so far; over the one before it
};

}  // namespace dsv32::harness
