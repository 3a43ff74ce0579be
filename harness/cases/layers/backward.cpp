#include "harness/cases/layers/backward.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "harness/judge/backward.h"
#include "harness/judge/cancelled.h"
#include "harness/judge/judge.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

const std::string kGradient = "grad.";
constexpr char kHidden[] = "hidden";

void append(std::vector<Verdict> more, std::vector<Verdict>& verdicts) {
  std::move(more.begin(), more.end(), std::back_inserter(verdicts));
}

/// The part of a backward pass that comes last is the one without experts.
std::vector<std::optional<ExpertRange>> parts_of(const ModelConfig& config,
                                                 const Segment& segment) {
  std::vector<std::optional<ExpertRange>> parts;
  if (segment.kind == SegmentKind::mlp && !config.is_dense_mlp(segment.layer))
    for (const ExpertRange& experts : expert_ranges(config)) parts.emplace_back(experts);
  parts.emplace_back();
  return parts;
}

std::string experts_text(const ExpertRange& experts) {
  return ", experts " + std::to_string(experts.first) + " to " + std::to_string(experts.last - 1);
}

}  // namespace

std::string stream_tap_before(const Segment& segment) {
  if (segment.kind == SegmentKind::mlp) return layer_tap(segment.layer, "attn.out");
  return segment.layer == 0 ? "embed" : layer_tap(segment.layer - 1, kHidden);
}

void BackwardChain::begin(int64_t last) {
  const CaseRun& run = sides_.run();
  const Case& c = run.the_case();
  const HostTensor start =
      sides_.rested(synthetic_gradient(c.seed, last, run.batch(), c.config.hidden_size));
  sides_.for_each([&](Side& side) { side.gradient = {{kHidden, start}}; });
}

void BackwardChain::end() {
  sides_.for_each([](Side& side) { side.gradient.clear(); });
}

void BackwardChain::judge(const Segment& segment, const Trace& decisions, const std::string& what) {
  const ModelConfig& config = sides_.run().the_case().config;
  if (segment.kind == SegmentKind::mlp) scale_ = 0;  // a layer begins
  sides_.decisions = decisions;
  for (const auto& experts : parts_of(config, segment)) {
    sides_.begin({.segment = segment,
                  .what = what + (experts ? experts_text(*experts) : ""),
                  .backward = true,
                  .experts = experts});
    judge_part(segment_gradients(config, segment, experts));
  }
  for (Judged& one : sides_.judged)
    append(std::exchange(updates_[one.about.subject], {}), one.forced_verdicts);
}

DType BackwardChain::first_mode() const {
  for (const auto& [mode, unused] : sides_.forced)
    if (mode != DType::fp8) return mode;
  return DType::float32;
}

void BackwardChain::judge_part(const std::vector<std::string>& gradients) {
  std::optional<YardstickTraces> first;
  for (const auto& [mode, unused] : sides_.forced) {
    if (mode == DType::fp8) continue;  // nothing trains there
    const YardstickTraces traces = sides_.forced_traces(mode, nullptr, first ? &*first : nullptr);
    for (Judged& one : sides_.judged) {
      if (mode_of(one.about) != mode) continue;
      const Trace lead = mode == DType::float32 ? *traces.reference : Trace();
      judge_own(one, sides_.own_trace(one, lead, traces), traces, gradients);
    }
    if (!first) first = YardstickTraces{.oracle = traces.oracle, .probe = traces.probe};
  }
  if (first)
    scale_ = std::max(scale_, gradient_scale(gradients, first->oracle, sides_.pass.segment.layer));
}

void BackwardChain::judge_own(Judged& one, const Trace& own, const YardstickTraces& traces,
                              const std::vector<std::string>& gradients) {
  Evidence evidence = sides_.evidence_of(one, own);
  evidence.gradients = gradients;
  evidence.gradient_scale = scale_;
  evidence.forced = yardsticks(traces);
  if (!one.about.against_reference) evidence.forced.reference = evidence.forced.twin = nullptr;
  append(judge_gradients(evidence), one.forced_verdicts);
  if (!sides_.pass.experts) one.forced_verdicts.push_back(judge_input(one, evidence));
  if (options_.step.run) append(judge_updates(one, own, gradients), updates_[one.about.subject]);
  sides_.waiting.rest();
}

/// The gradient that the subject hands to the stream before the segment.
Verdict BackwardChain::judge_input(const Judged& one, const Evidence& evidence) {
  const DType mode = mode_of(one.about);
  YardstickSides& forced = sides_.forced.at(mode);
  YardstickSides& first = sides_.forced.at(first_mode());
  const auto stored = [&](const Side& side) {
    return side.gradient.at(kHidden).cast(one.about.dtype);
  };
  const std::string tap = stream_tap_before(sides_.pass.segment);
  const bool is_reference = sides_.is_reference_side(one.about);
  const HostTensor own = stored(is_reference ? sides_.reference_of(mode) : one.side);
  const HostTensor reference = stored(sides_.reference_of(mode));
  const HostTensor twin =
      forced.twin && one.about.against_reference ? stored(*forced.twin) : HostTensor();
  Trace oracle, probe;
  oracle.slopes[tap] = first.oracle.gradient.at(kHidden);
  probe.slopes[tap] = first.probe.gradient.at(kHidden);
  probe = sides_.drawn_out(std::move(probe), oracle);
  Yardstick yardstick{.oracle = &oracle.slopes.at(tap), .probe = &probe.slopes.at(tap)};
  if (one.about.against_reference) {
    yardstick.reference = &reference;
    if (twin.defined()) yardstick.twin = &twin;
  }
  return judge_slope(evidence, tap, own, yardstick);
}

std::vector<Verdict> BackwardChain::judge_updates(const Judged& one, const Trace& own,
                                                  const std::vector<std::string>& gradients) {
  std::vector<Verdict> verdicts;
  for (const std::string& name : gradients) {
    const HostTensor* gradient = own.find(name);
    if (gradient == nullptr) continue;  // said with the gradients
    verdicts.push_back(judge_update(one, name.substr(kGradient.size()), *gradient));
    sides_.waiting.rest();
  }
  return verdicts;
}

/// One AdamW step from these weights and the subject's own gradient.
Verdict BackwardChain::judge_update(const Judged& one, const std::string& weight,
                                    const HostTensor& gradient) {
  const CaseRun& run = sides_.run();
  const WeightSpec spec{weight, *weight_shape(run.the_case().config, weight)};
  const HostTensor parameter = run.weights().load(spec).cast(DType::float32);
  const HostTensor own = gradient.cast(DType::float32);
  const HostTensor updated = options_.step.run(one.about.impl, weight, parameter, own);
  Verdict verdict =
      judge_first_update(step_name(0, "update", weight), options_.step.numbers,
                         {parameter.data<float>(), own.data<float>(), updated.data<float>()});
  verdict.subject = one.about.subject;
  return verdict;
}

}  // namespace dsv32::harness
