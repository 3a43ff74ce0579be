#include "harness/cases/layers/run.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <optional>
#include <utility>

#include "harness/cases/layers/backward.h"
#include "harness/cases/layers/sides.h"

namespace dsv32::harness {
namespace {

constexpr size_t kSegmentsAhead = 2;  // a layer, whose weights may be read ahead

void append(std::vector<Verdict> more, std::vector<Verdict>& verdicts) {
  std::move(more.begin(), more.end(), std::back_inserter(verdicts));
}

/// One chain of segments with all of its sides.
class Chain {
 public:
  Chain(const CaseRun& run, const std::vector<JudgedTrace>& subjects,
        const LayerRunOptions& options)
      : run_(run), options_(options), sides_(run, subjects, options.twins) {}

  void begin(const SegmentChain& chain) {
    StreamState start;
    if (chain.begins_at) {
      const Case& c = run_.the_case();
      start["hidden"] = sides_.rested(
          synthetic_hidden(c.seed, *chain.begins_at, {c.B, c.S, c.config.hidden_size}));
    }
    sides_.for_each([&](Side& side) { side.stream = start; });
  }

  /// `coming`: the segments after it, as far ahead as one layer. `what`: for people, as "layer 3
  /// mlp (6/8)". `ends`: the last of its chain.
  void judge(const Segment& segment, std::vector<Segment> coming, const std::string& what,
             bool ends) {
    if (options_.backward) sides_.for_each([](Side& side) { side.inputs.push_back(side.stream); });
    sides_.begin(
        {.segment = segment, .coming = std::move(coming), .what = what, .taps = options_.forward});
    Trace lead = sides_.advance(sides_.lead);
    sides_.decisions = {};
    for (const std::string& name : lead.names())
      if (is_decision(name)) sides_.decisions.put(name, *lead.find(name));
    if (options_.backward) decisions_.push_back(sides_.decisions);
    if (!options_.forward) {
      if (!ends) go_on_without_taps();
      return;
    }
    std::vector<Trace> own = judge_forced(std::move(lead));
    if (!options_.staged) return;
    for (size_t i = 0; i < sides_.judged.size(); ++i) {
      judge_staged(sides_.judged[i], own[i]);
      own[i] = {};
    }
  }

  void begin_backward(const SegmentChain& chain) {
    sides_.for_each([](Side& side) { side.stream.clear(); });
    backward_.begin(chain.segments.back().layer);
  }
  void judge_backward(const Segment& segment, const std::string& what) {
    backward_.judge(segment, decisions_.back(), what);
    decisions_.pop_back();
    sides_.for_each([](Side& side) { side.inputs.pop_back(); });
  }

  /// Behind the last segment of a chain: the next chain has a beginning of its own.
  void end() {
    sides_.for_each([](Side& side) { side.stream.clear(); });
    backward_.end();
  }

  LayerProgress progress(size_t segments) {
    LayerProgress progress{.segments = segments};
    for (const Judged& judged : sides_.judged) {
      progress.staged.push_back(judged.staged_verdicts);
      progress.forced.push_back(judged.forced_verdicts);
    }
    sides_.for_each_stream([&](const std::string& side, StreamState& stream) {
      for (const auto& [part, value] : stream) progress.streams[side + part] = value;
    });
    return progress;
  }

  void go_on(const LayerProgress& from) {
    for (size_t i = 0; i < sides_.judged.size(); ++i) {
      sides_.judged[i].staged_verdicts = from.staged.at(i);
      sides_.judged[i].forced_verdicts = from.forced.at(i);
    }
    sides_.for_each_stream([&](const std::string& side, StreamState& stream) {
      stream.clear();
      for (auto at = from.streams.lower_bound(side);
           at != from.streams.end() && at->first.starts_with(side); ++at)
        stream[at->first.substr(side.size())] = at->second;
    });
  }

  /// What was found so far.
  std::vector<LayerVerdicts> verdicts() {
    std::vector<LayerVerdicts> all;
    for (const Judged& judged : sides_.judged) {
      const Trace nothing;
      Evidence evidence = sides_.evidence_of(judged, nothing);
      LayerVerdicts one{judged.about.subject, judge_selection(evidence)};
      append(judged.staged_verdicts, one.verdicts);
      append(judged.forced_verdicts, one.verdicts);
      all.push_back(std::move(one));
    }
    return all;
  }

 private:
  /// Every side that goes back must have gone forth.
  void go_on_without_taps() {
    const Trace nothing;
    std::optional<YardstickTraces> first;
    for (const auto& [mode, unused] : sides_.forced) {
      if (mode == DType::fp8) continue;
      const YardstickTraces traces =
          sides_.forced_traces(mode, &nothing, first ? &*first : nullptr);
      for (Judged& one : sides_.judged)
        if (mode_of(one.about) == mode) sides_.own_trace(one, nothing, traces);
      if (!first) first = traces;
    }
  }

  /// Each subject's own trace of the segment.
  std::vector<Trace> judge_forced(Trace lead) {
    std::vector<Trace> own(sides_.judged.size());
    std::optional<YardstickTraces> first;
    for (const auto& [mode, unused] : sides_.forced) {
      YardstickTraces traces = sides_.forced_traces(mode, &lead, first ? &*first : nullptr);
      for (size_t i = 0; i < own.size(); ++i) {
        Judged& judged = sides_.judged[i];
        if (mode_of(judged.about) != mode) continue;
        own[i] = sides_.own_trace(judged, lead, traces);
        const Trace in_force = with_decisions(own[i]);
        Evidence evidence = sides_.evidence_of(judged, in_force);
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
      Trace trace = sides_.advance(side, oracle, &fed);
      side.options.feed = nullptr;
      return trace;
    };
    YardstickSides& sides = judged.staged;
    traces.oracle = make(sides.oracle, nullptr);
    traces.probe = sides_.drawn_out(make(sides.probe, &traces.oracle), traces.oracle);
    if (sides.reference) traces.reference = make(*sides.reference, &traces.oracle);
    if (sides.twin) traces.twin = make(*sides.twin, &traces.oracle);
    Evidence evidence = sides_.evidence_of(judged, own);
    evidence.fed = &fed;
    evidence.staged = yardsticks(traces);
    append(harness::judge_staged(evidence), judged.staged_verdicts);
  }

  /// The decisions in force in place of the side's own choice.
  Trace with_decisions(Trace trace) const {
    for (const std::string& name : sides_.decisions.names())
      if (trace.has(name)) trace.put(name, *sides_.decisions.find(name));
    return trace;
  }

  const CaseRun& run_;
  const LayerRunOptions& options_;
  LayerSides sides_;
  BackwardChain backward_{sides_, options_};
  std::vector<Trace> decisions_;  // of the segments of the chain, for the way back
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
  const size_t all = count_segments(options, run.the_case().config);
  const size_t before = options.from ? options.from->segments : 0;
  size_t done = 0, turn = 0;
  Chain sides(run, subjects, options);
  if (options.from) sides.go_on(*options.from);
  const auto timed = [&](const Segment& segment, bool backward, const auto& judge) {
    const auto start = Clock::now();
    judge(to_string(segment) + (backward ? " backward" : "") + " (" + std::to_string(done) + "/" +
          std::to_string(all) + ")");
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (options.finished) options.finished({segment, done, all, seconds, backward});
  };
  for (const SegmentChain& chain : chains) {
    if (done >= before) sides.begin(chain);
    for (const Segment& segment : chain.segments) {
      ++turn;
      if (done++ < before) continue;
      const bool ends = segment == chain.segments.back();
      const size_t horizon = std::min(in_turn.size(), turn + kSegmentsAhead);
      timed(segment, false, [&](const std::string& what) {
        sides.judge(segment, {in_turn.begin() + turn, in_turn.begin() + horizon}, what, ends);
      });
      if (options.backward) continue;
      if (ends) sides.end();
      if (options.reached && segment.kind != SegmentKind::attention)
        options.reached(sides.progress(done));
    }
    if (!options.backward) continue;
    if (done >= before) sides.begin_backward(chain);
    for (auto segment = chain.segments.rbegin(); segment != chain.segments.rend(); ++segment) {
      if (done++ < before) continue;
      timed(*segment, true, [&](const std::string& what) { sides.judge_backward(*segment, what); });
    }
    if (done <= before) continue;
    sides.end();
    if (options.reached) options.reached(sides.progress(done));
  }
  return sides.verdicts();
}

size_t count_segments(const LayerRunOptions& options, const ModelConfig& config) {
  size_t all = 0;
  for (const SegmentChain& chain : chains_of(options.selection, config))
    all += chain.segments.size() * (options.backward ? 2 : 1);
  return all;
}

bool affords_twins(const Case& c) {
  constexpr int64_t kTokens = 2048;
  return c.B * c.S <= kTokens;
}

}  // namespace dsv32::harness
