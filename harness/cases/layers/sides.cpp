#include "harness/cases/layers/sides.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "harness/cases/implementations.h"
#include "src/bridge/runtime.h"

namespace dsv32::harness {
namespace {

constexpr char kReference[] = "reference";

const Trace* given(const std::optional<Trace>& trace) { return trace ? &*trace : nullptr; }

RunOptions sequential(RunOptions options) {
  options.summation = Summation::sequential;
  options.dialect.rounding = options.dialect.rounding == RoundingStyle::spec
                                 ? RoundingStyle::transformers
                                 : RoundingStyle::spec;
  return options;
}

/// Is the leading run itself this subject?
bool leads(const JudgedTrace& subject) {
  return subject.impl == kReference && subject.dtype == DType::float32 &&
         subject.dialect == Dialect{} && subject.layer_dialects.empty() &&
         subject.backward_dialects.empty();
}

}  // namespace

Yardsticks yardsticks(const YardstickTraces& traces) {
  return {.oracle = &traces.oracle,
          .reference = given(traces.reference),
          .probe = &traces.probe,
          .twin = given(traces.twin)};
}

LayerSides::LayerSides(const CaseRun& run, const std::vector<JudgedTrace>& subjects, bool twins)
    : run_(run), twins_(twins) {
  return_large_blocks();
  lead = side("reference float32, leading", {.dtype = DType::float32});
  for (const JudgedTrace& subject : subjects) add(subject);
}

Side LayerSides::side(std::string what, RunOptions options, std::string impl) const {
  return {.what = std::move(what), .impl = std::move(impl), .options = std::move(options)};
}

bool LayerSides::is_reference_side(const JudgedTrace& subject) const {
  return subject.impl == kReference && subject.layer_dialects.empty() &&
         subject.backward_dialects.empty() &&
         forced.at(mode_of(subject)).reference->options.dialect == subject.dialect;
}

/// Some subject is the reference of this dtype itself.
bool LayerSides::has_reference_side(DType mode) const {
  return std::any_of(judged.begin(), judged.end(), [&](const Judged& one) {
    return mode_of(one.about) == mode && is_reference_side(one.about);
  });
}

bool LayerSides::needs_reference(DType mode) const {
  return std::any_of(judged.begin(), judged.end(), [&](const Judged& one) {
    return mode_of(one.about) == mode && one.about.against_reference;
  });
}

RunOptions LayerSides::under_decisions(DType dtype, const Dialect& dialect) const {
  return {.dtype = dtype, .dialect = dialect, .feeding = Feeding::forced, .feed = &decisions};
}

void LayerSides::add(const JudgedTrace& subject) {
  Judged one{.about = subject};
  RunOptions own = under_decisions(subject.dtype, in_dtype({}, mode_of(subject)));
  own.layer_dialects = subject.layer_dialects;
  one.side = side(subject.subject.label, own, subject.impl);
  one.side.backward_dialects = subject.backward_dialects;
  one.staged =
      sides("staged", " of " + subject.subject.label,
            {.dtype = subject.dtype, .dialect = subject.dialect, .feeding = Feeding::staged},
            subject.against_reference);
  judged.push_back(std::move(one));
  const DType mode = mode_of(subject);
  if (!forced.contains(mode)) {
    forced[mode] = sides("forced", " " + std::string(to_string(mode)),
                         under_decisions(subject.dtype, subject.dialect), true);
  }
}

/// `of`: for people.
YardstickSides LayerSides::sides(const std::string& mode, const std::string& of,
                                 const RunOptions& options, bool reference) const {
  RunOptions oracle = options;
  oracle.dtype = DType::float64;
  const RunOptions probe = probe_options(run_.the_case(), options);
  YardstickSides all{
      side(mode + " oracle" + of, oracle), side(mode + " probe" + of, probe), {}, {}};
  if (!reference) return all;
  all.reference = side(mode + " reference" + of, options);
  if (twins_ && options.dtype != DType::float64)
    all.twin = side(mode + " twin" + of, sequential(options));
  return all;
}

RunOptions LayerSides::forward_options(Side& side) const {
  RunOptions options = side.options;
  options.stream = &side.stream;
  if (!pass.taps) options.wanted = is_decision;
  return options;
}

RunOptions LayerSides::backward_options(Side& side) const {
  RunOptions options = side.options;
  options.feeding = Feeding::forced;  // the leading run too
  options.feed = &decisions;
  options.backward = true;
  options.experts = pass.experts;
  options.stream = &side.inputs.back();
  options.gradient = &side.gradient;
  for (const auto& [layer, dialect] : side.backward_dialects)
    options.layer_dialects[layer] = dialect;
  return options;
}

void LayerSides::begin(LayerPass next) {
  pass = std::move(next);
  done_before_ = std::exchange(done_, 0);
}

/// Says what this pass reads, in about the order, and what comes behind it. Each segment takes as
/// many passes as the one before it, so the last one is known. The way back reads experts a few at
/// a time, as they come.
void LayerSides::expect_weights() {
  const ModelConfig& config = run_.the_case().config;
  const auto read_by = [&](const Segment& segment) {  // the embedding's are rows here and there
    return segment.kind == SegmentKind::embed ? std::vector<WeightSpec>()
                                              : segment_specs(config, segment);
  };
  if (pass.backward) return run_.weights().expect({}, {});
  std::vector<WeightSpec> then;
  const auto append = [&](const Segment& segment) {
    for (WeightSpec& spec : read_by(segment)) then.push_back(std::move(spec));
  };
  if (++done_ != done_before_) append(pass.segment);
  for (const Segment& segment : pass.coming) append(segment);
  run_.weights().expect(read_by(pass.segment), then);
}

Trace LayerSides::advance(Side& side, const Trace* oracle, const Trace* in_force) {
  RunOptions options = pass.backward ? backward_options(side) : forward_options(side);
  if (oracle != nullptr) options.measure = resting(run_.measured(*oracle, in_force));
  options.room = [this](DType dtype, const Shape& shape) {
    waiting.rest();
    return waiting.tensor(dtype, shape);
  };
  options.segment = pass.segment;
  expect_weights();
  Trace trace = run_.run(options, pass.what + ", " + side.what, side.impl);
  waiting.rest();
  return trace;
}

/// What was read of taps before this one takes no memory any more.
decltype(RunOptions::measure) LayerSides::resting(decltype(RunOptions::measure) measure) {
  return [this, measure = std::move(measure)](const std::string& name, const HostTensor& value) {
    waiting.rest();
    return measure(name, value);
  };
}

YardstickTraces LayerSides::forced_traces(DType mode, const Trace* led,
                                          const YardstickTraces* first) {
  YardstickSides& sides = forced.at(mode);
  if (mode == DType::fp8) first = nullptr;
  YardstickTraces traces;
  traces.oracle = first != nullptr ? first->oracle : advance(sides.oracle);
  const auto measured = [&](Side& side) { return advance(side, &traces.oracle, &decisions); };
  traces.probe = first != nullptr ? first->probe : drawn_out(measured(sides.probe), traces.oracle);
  traces.reference = mode == DType::float32 && led != nullptr ? *led
                     : has_reference_side(mode)               ? advance(reference_of(mode))
                                                              : measured(reference_of(mode));
  if (sides.twin && needs_reference(mode)) traces.twin = measured(*sides.twin);
  return traces;
}

Trace LayerSides::own_trace(Judged& one, const Trace& lead_trace, const YardstickTraces& traces) {
  if (leads(one.about)) return lead_trace;
  return is_reference_side(one.about) ? *traces.reference : advance(one.side);
}

Evidence LayerSides::evidence_of(const Judged& one, const Trace& trace) {
  const Case& c = run_.the_case();
  const Segment& segment = pass.segment;
  Evidence evidence{
      .subject = one.about.subject,
      .c = &c,
      .batch = &run_.batch(),
      .objective = run_.objective(),
      .dtype = one.about.dtype,
      .excluded_experts_at_zero = one.about.dialect.router.group_fill_zero,
      .unheld = one.about.impl.empty() ? std::vector<std::string>{} : unheld_taps(one.about.impl),
      .judged = &trace,
      .taps = segment_taps(c.config, segment),
      .after_each_tap = [this] { waiting.rest(); }};
  const bool routed = segment.kind == SegmentKind::mlp && !c.config.is_dense_mlp(segment.layer);
  if (routed)
    evidence.biases["model.layers." + std::to_string(segment.layer) +
                    ".mlp.gate.e_score_correction_bias"] = run_.router_bias(segment.layer);
  return evidence;
}

HostTensor LayerSides::rested(const HostTensor& value) {
  HostTensor copy = waiting.tensor(value.dtype(), value.shape());
  std::memcpy(copy.raw(), value.raw(), static_cast<size_t>(value.bytes()));
  waiting.rest();
  return copy;
}

}  // namespace dsv32::harness
