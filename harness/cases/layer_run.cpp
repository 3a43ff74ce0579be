#include "harness/cases/layer_run.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <optional>
#include <utility>

#include "harness/cases/implementations.h"
#include "harness/cases/probe.h"
#include "src/bridge/runtime.h"
#include "src/io/scratch.h"

namespace dsv32::harness {
namespace {

constexpr char kReference[] = "reference";
constexpr size_t kSegmentsAhead = 2;  // a layer, whose weights may be read ahead

/// One run that goes over the segments, and the residual stream that it has reached.
struct Side {
  std::string what = {}, impl = {};
  RunOptions options = {};
  StreamState stream = {};
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

void append(std::vector<Verdict> more, std::vector<Verdict>& verdicts) {
  std::move(more.begin(), more.end(), std::back_inserter(verdicts));
}

const Trace* given(const std::optional<Trace>& trace) { return trace ? &*trace : nullptr; }

Yardsticks yardsticks(const YardstickTraces& traces) {
  return {.oracle = &traces.oracle,
          .reference = given(traces.reference),
          .probe = &traces.probe,
          .twin = given(traces.twin)};
}

RunOptions sequential(RunOptions options) {
  options.summation = Summation::sequential;
  options.dialect.rounding = options.dialect.rounding == RoundingStyle::spec
                                 ? RoundingStyle::transformers
                                 : RoundingStyle::spec;
  return options;
}

/// A subject on its way over the segments.
struct Judged {
  JudgedTrace about;
  Side side = {};
  YardstickSides staged = {};
  std::vector<Verdict> staged_verdicts = {}, forced_verdicts = {};
};

/// One chain of segments with all of its sides.
class Chain {
 public:
  Chain(const CaseRun& run, const std::vector<JudgedTrace>& subjects,
        const LayerRunOptions& options)
      : run_(run), options_(options) {
    return_large_blocks();
    lead_ = side("reference float32, leading", {.dtype = DType::float32});
    for (const JudgedTrace& subject : subjects) add(subject);
  }

  void begin(const SegmentChain& chain) {
    StreamState start;
    if (chain.begins_at) {
      const Case& c = run_.the_case();
      start["hidden"] =
          synthetic_hidden(c.seed, *chain.begins_at, {c.B, c.S, c.config.hidden_size});
    }
    for_each_side([&](Side& side) { side.stream = start; });
  }

  /// `coming`: the segments after it, as far ahead as one layer. `what`: for people, as "layer 3
  /// mlp (6/8)".
  void judge(const Segment& segment, std::vector<Segment> coming, const std::string& what) {
    segment_ = segment;
    coming_ = std::move(coming);
    what_ = what;
    judge_segment();
    passes_ = std::exchange(pass_, 0);
  }

  /// Behind the last segment of a chain: the next chain has a beginning of its own.
  void end() {
    for_each_side([](Side& side) { side.stream.clear(); });
  }

  LayerProgress progress(size_t segments) {
    LayerProgress progress{.segments = segments};
    for (const Judged& judged : judged_) {
      progress.staged.push_back(judged.staged_verdicts);
      progress.forced.push_back(judged.forced_verdicts);
    }
    for_each_stream([&](const std::string& side, StreamState& stream) {
      for (const auto& [part, value] : stream) progress.streams[side + part] = value;
    });
    return progress;
  }

  void go_on(const LayerProgress& from) {
    for (size_t i = 0; i < judged_.size(); ++i) {
      judged_[i].staged_verdicts = from.staged.at(i);
      judged_[i].forced_verdicts = from.forced.at(i);
    }
    for_each_stream([&](const std::string& side, StreamState& stream) {
      stream.clear();
      for (auto at = from.streams.lower_bound(side);
           at != from.streams.end() && at->first.starts_with(side); ++at)
        stream[at->first.substr(side.size())] = at->second;
    });
  }

  /// What was found so far.
  std::vector<LayerVerdicts> verdicts() {
    std::vector<LayerVerdicts> all;
    for (const Judged& judged : judged_) {
      const Trace nothing;
      Evidence evidence = evidence_of(judged, nothing);
      LayerVerdicts one{judged.about.subject, judge_selection(evidence)};
      append(judged.staged_verdicts, one.verdicts);
      append(judged.forced_verdicts, one.verdicts);
      all.push_back(std::move(one));
    }
    return all;
  }

 private:
  void judge_segment() {
    Trace lead = advance(lead_);
    decisions_ = {};
    for (const std::string& name : lead.names())
      if (is_decision(name)) decisions_.put(name, *lead.find(name));
    std::vector<Trace> own = judge_forced(std::move(lead));
    if (!options_.staged) return;
    for (size_t i = 0; i < judged_.size(); ++i) {
      judge_staged(judged_[i], own[i]);
      own[i] = {};
    }
  }

  Side side(std::string what, RunOptions options, std::string impl = kReference) {
    return {.what = std::move(what), .impl = std::move(impl), .options = std::move(options)};
  }

  /// Is the leading run itself this subject?
  static bool leads(const JudgedTrace& subject) {
    return subject.impl == kReference && subject.dtype == DType::float32 &&
           subject.dialect == Dialect{} && subject.layer_dialects.empty();
  }

  /// Is it the very run that others of its dtype are measured with?
  bool is_reference_side(const JudgedTrace& subject) const {
    return subject.impl == kReference && subject.layer_dialects.empty() &&
           forced_.at(mode_of(subject)).reference->options.dialect == subject.dialect;
  }

  RunOptions forced(DType dtype, const Dialect& dialect) const {
    return {.dtype = dtype, .dialect = dialect, .feeding = Feeding::forced, .feed = &decisions_};
  }

  void add(const JudgedTrace& subject) {
    Judged judged{.about = subject};
    RunOptions own = forced(subject.dtype, in_dtype({}, mode_of(subject)));
    own.layer_dialects = subject.layer_dialects;
    judged.side = side(subject.subject.label, own, subject.impl);
    judged.staged =
        sides("staged", " of " + subject.subject.label,
              {.dtype = subject.dtype, .dialect = subject.dialect, .feeding = Feeding::staged},
              subject.against_reference);
    judged_.push_back(std::move(judged));
    const DType mode = mode_of(subject);
    if (!forced_.contains(mode)) {
      forced_[mode] = sides("forced", " " + std::string(to_string(mode)),
                            forced(subject.dtype, subject.dialect), true);
    }
  }

  /// `of`: for people.
  YardstickSides sides(const std::string& mode, const std::string& of, const RunOptions& options,
                       bool reference) {
    RunOptions oracle = options;
    oracle.dtype = DType::float64;
    const RunOptions probe = probe_options(run_.the_case(), options);
    YardstickSides sides{
        side(mode + " oracle" + of, oracle), side(mode + " probe" + of, probe), {}, {}};
    if (!reference) return sides;
    sides.reference = side(mode + " reference" + of, options);
    if (options_.twins && options.dtype != DType::float64)
      sides.twin = side(mode + " twin" + of, sequential(options));
    return sides;
  }

  template <typename Visit>
  void for_each_side(Visit visit) {
    const auto visit_all = [&](YardstickSides& sides) {
      visit(sides.oracle);
      visit(sides.probe);
      if (sides.reference) visit(*sides.reference);
      if (sides.twin) visit(*sides.twin);
    };
    visit(lead_);
    for (auto& [mode, sides] : forced_) visit_all(sides);
    for (Judged& judged : judged_) {
      visit(judged.side);
      visit_all(judged.staged);
    }
  }

  /// With a name for each side's: "side3.".
  template <typename Visit>
  void for_each_stream(Visit visit) {
    int number = 0;
    for_each_side([&](Side& side) { visit("side" + std::to_string(number++) + ".", side.stream); });
  }

  /// The weights that a pass reads in about their order; the embedding's are rows here and there.
  std::vector<WeightSpec> read_by(const Segment& segment) const {
    if (segment.kind == SegmentKind::embed) return {};
    return segment_specs(run_.the_case().config, segment);
  }

  /// Says what this pass reads and what comes behind it. Each segment takes as many passes as the
  /// one before it, so the last one is known.
  void expect_weights() {
    std::vector<WeightSpec> then;
    const auto append = [&](const Segment& segment) {
      for (WeightSpec& spec : read_by(segment)) then.push_back(std::move(spec));
    };
    if (++pass_ != passes_) append(segment_);
    for (const Segment& segment : coming_) append(segment);
    run_.weights().expect(read_by(segment_), then);
  }

  /// With an oracle: the run is measured against it, and its taps are dropped.
  Trace advance(Side& side, const Trace* oracle = nullptr, const Trace* in_force = nullptr) {
    RunOptions options = side.options;
    if (oracle != nullptr) options.measure = resting(run_.measured(*oracle, in_force));
    options.room = [this](DType dtype, const Shape& shape) {
      waiting_.rest();
      return waiting_.tensor(dtype, shape);
    };
    options.segment = segment_;
    options.stream = &side.stream;
    expect_weights();
    Trace trace = run_.run(options, what_ + ", " + side.what, side.impl);
    waiting_.rest();
    return trace;
  }

  /// What was read of taps before this one takes no memory any more.
  decltype(RunOptions::measure) resting(decltype(RunOptions::measure) measure) {
    return [this, measure = std::move(measure)](const std::string& name, const HostTensor& value) {
      waiting_.rest();
      return measure(name, value);
    };
  }

  Trace drawn_out(Trace probe, const Trace& oracle) const {
    return harness::drawn_out(run_.the_case(), std::move(probe), oracle);
  }

  /// The runs of float64 and of the probe serve every dtype but fp8, which is another function.
  /// `lead` is the float32 reference.
  YardstickTraces forced_traces(DType mode, const Trace& lead, const YardstickTraces* first) {
    YardstickSides& sides = forced_.at(mode);
    if (mode == DType::fp8) first = nullptr;
    YardstickTraces traces;
    traces.oracle = first != nullptr ? first->oracle : advance(sides.oracle);
    const auto measured = [&](Side& side) { return advance(side, &traces.oracle, &decisions_); };
    traces.probe =
        first != nullptr ? first->probe : drawn_out(measured(sides.probe), traces.oracle);
    traces.reference = mode == DType::float32     ? lead
                       : has_reference_side(mode) ? advance(*sides.reference)
                                                  : measured(*sides.reference);
    if (sides.twin && needs_reference(mode)) traces.twin = measured(*sides.twin);
    return traces;
  }

  /// Some subject is the reference of this dtype itself.
  bool has_reference_side(DType mode) const {
    return std::any_of(judged_.begin(), judged_.end(), [&](const Judged& judged) {
      return mode_of(judged.about) == mode && is_reference_side(judged.about);
    });
  }

  bool needs_reference(DType mode) const {
    return std::any_of(judged_.begin(), judged_.end(), [&](const Judged& judged) {
      return mode_of(judged.about) == mode && judged.about.against_reference;
    });
  }

  /// Each subject's own trace of the segment.
  std::vector<Trace> judge_forced(Trace lead) {
    std::vector<Trace> own(judged_.size());
    std::optional<YardstickTraces> first;
    for (const auto& [mode, unused] : forced_) {
      YardstickTraces traces = forced_traces(mode, lead, first ? &*first : nullptr);
      for (size_t i = 0; i < judged_.size(); ++i) {
        Judged& judged = judged_[i];
        if (mode_of(judged.about) != mode) continue;
        own[i] = leads(judged.about)               ? lead
                 : is_reference_side(judged.about) ? *traces.reference
                                                   : advance(judged.side);
        const Trace in_force = with_decisions(own[i]);
        Evidence evidence = evidence_of(judged, in_force);
        evidence.forced = yardsticks(traces);
        if (!judged.about.against_reference)
          evidence.forced.reference = evidence.forced.twin = nullptr;
        append(harness::judge_forced(evidence), judged.forced_verdicts);
      }
      if (!first) first = YardstickTraces{.oracle = traces.oracle, .probe = traces.probe};
    }
    return own;
  }

  void judge_staged(Judged& judged, const Trace& own) {
    const Trace fed = with_decisions(own);
    YardstickTraces traces;
    const auto make = [&](Side& side, const Trace* oracle) {
      side.options.feed = &fed;
      Trace trace = advance(side, oracle, &fed);
      side.options.feed = nullptr;
      return trace;
    };
    YardstickSides& sides = judged.staged;
    traces.oracle = make(sides.oracle, nullptr);
    traces.probe = drawn_out(make(sides.probe, &traces.oracle), traces.oracle);
    if (sides.reference) traces.reference = make(*sides.reference, &traces.oracle);
    if (sides.twin) traces.twin = make(*sides.twin, &traces.oracle);
    Evidence evidence = evidence_of(judged, own);
    evidence.fed = &fed;
    evidence.staged = yardsticks(traces);
    append(harness::judge_staged(evidence), judged.staged_verdicts);
  }

  /// The decisions in force in place of the side's own choice.
  Trace with_decisions(Trace trace) const {
    for (const std::string& name : decisions_.names())
      if (trace.has(name)) trace.put(name, *decisions_.find(name));
    return trace;
  }

  Evidence evidence_of(const Judged& judged, const Trace& trace) {
    const Case& c = run_.the_case();
    Evidence evidence{.subject = judged.about.subject,
                      .c = &c,
                      .batch = &run_.batch(),
                      .objective = run_.objective(),
                      .dtype = judged.about.dtype,
                      .excluded_experts_at_zero = judged.about.dialect.router.group_fill_zero,
                      .unheld = judged.about.impl.empty() ? std::vector<std::string>{}
                                                          : unheld_taps(judged.about.impl),
                      .judged = &trace,
                      .taps = segment_taps(c.config, segment_),
                      .after_each_tap = [this] { waiting_.rest(); }};
    const bool routed = segment_.kind == SegmentKind::mlp && !c.config.is_dense_mlp(segment_.layer);
    if (routed)
      evidence.biases["model.layers." + std::to_string(segment_.layer) +
                      ".mlp.gate.e_score_correction_bias"] = run_.router_bias(segment_.layer);
    return evidence;
  }

  const CaseRun& run_;
  const LayerRunOptions& options_;
  Segment segment_;
  std::vector<Segment> coming_;
  int pass_ = 0, passes_ = 0;  // over this segment so far; over the one before it
  std::string what_;
  Trace decisions_;      // of the leading run, of the segment at hand
  io::Scratch waiting_;  // large taps and streams
  Side lead_;
  std::map<DType, YardstickSides> forced_;
  std::vector<Judged> judged_;
};

}  // namespace

std::vector<LayerVerdicts> judge_layers(const CaseRun& run,
                                        const std::vector<JudgedTrace>& subjects,
                                        const LayerRunOptions& options) {
  using Clock = std::chrono::steady_clock;
  const std::vector<SegmentChain> chains = chains_of(options.selection, run.the_case().config);
  std::vector<Segment> in_turn;
  for (const SegmentChain& chain : chains)
    in_turn.insert(in_turn.end(), chain.segments.begin(), chain.segments.end());
  const size_t all = in_turn.size();
  size_t done = 0;
  const size_t before = options.from ? options.from->segments : 0;
  Chain sides(run, subjects, options);
  if (options.from) sides.go_on(*options.from);
  for (const SegmentChain& chain : chains) {
    if (done >= before) sides.begin(chain);
    for (const Segment& segment : chain.segments) {
      if (done++ < before) continue;
      const auto start = Clock::now();
      const std::string count = " (" + std::to_string(done) + "/" + std::to_string(all) + ")";
      const size_t horizon = std::min(all, done + kSegmentsAhead);
      sides.judge(segment, {in_turn.begin() + done, in_turn.begin() + horizon},
                  to_string(segment) + count);
      const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
      if (options.finished) options.finished({segment, done, all, seconds});
      if (segment == chain.segments.back()) sides.end();
      if (options.reached && segment.kind != SegmentKind::attention)
        options.reached(sides.progress(done));
    }
  }
  return sides.verdicts();
}

bool affords_twins(const Case& c) {
  constexpr int64_t kTokens = 2048;
  return c.B * c.S <= kTokens;
}

}  // namespace dsv32::harness
