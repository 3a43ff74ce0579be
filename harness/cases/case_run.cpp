#include "harness/cases/case_run.h"

#include <algorithm>
#include <chrono>

#include "harness/cases/implementations.h"
#include "harness/cases/measuring.h"
#include "harness/cases/probe.h"
#include "harness/cases/threads.h"
#include "harness/judge/backward.h"
#include "src/bridge/runtime.h"
#include "src/model/errors.h"
#include "src/reference/reference.h"

namespace dsv32::harness {
namespace {

bool any_name(const Trace& trace, const std::function<bool(const TapName&)>& is) {
  return std::any_of(trace.names().begin(), trace.names().end(), [&](const std::string& name) {
    const auto tap = parse_tap(name);
    return tap && is(*tap);
  });
}

/// It holds forward values of its own that stages can be fed with.
bool has_stage_inputs(const Trace& trace) {
  return any_name(trace, [](const TapName& tap) {
    return !tap.info.is_decision() && tap.info.kind != TapKind::gradient &&
           tap.info.kind != TapKind::scalar;
  });
}

const Trace* stage_inputs(const JudgedTrace& judged) {
  return judged.fed != nullptr ? judged.fed : judged.trace;
}

bool is_gradient(const std::string& name) { return name.starts_with("grad."); }

bool has_gradients(const JudgedTrace& judged) {
  const auto& sketches = judged.trace->sketches;
  if (std::any_of(sketches.begin(), sketches.end(),
                  [](const auto& entry) { return is_gradient(entry.first); }))
    return true;
  if (judged.golden != nullptr && judged.golden->kind == "sketch") {
    return std::any_of(judged.golden->sketches.begin(), judged.golden->sketches.end(),
                       [](const auto& entry) { return entry.first.rfind("grad.", 0) == 0; });
  }
  return any_name(*judged.trace,
                  [](const TapName& tap) { return tap.info.kind == TapKind::gradient; });
}

/// The warm-up is dense whatever the config says.
Case as_trained(const Objective& objective, Case c) {
  if (objective.kl == KlStage::warmup) c.config.use_sparse_attention = false;
  return c;
}

/// Forced by these decisions, free where there are none.
void replay(RunOptions& options, const Trace* decisions) {
  if (decisions == nullptr || !has_decisions(*decisions)) return;
  options.feeding = Feeding::forced;
  options.feed = decisions;
}

/// The decisions in force in an end-to-end run: the subject's, and the oracle's where it has none.
Trace decisions_in_force(const Trace& subject, const Trace& oracle) {
  Trace decisions;
  for (const std::string& name : oracle.names()) {
    if (!is_decision(name)) continue;
    const HostTensor* own = subject.find(name);
    decisions.put(name, own != nullptr ? *own : *oracle.find(name));
  }
  return decisions;
}

/// The shared reference is the one that this trace asks for.
bool shared_reference(const ForcedTraces& shared, const ModelConfig& config,
                      const JudgedTrace& judged) {
  return shared.reference && shared.reference_dtype == judged.dtype &&
         same_function(config, shared.dialect, judged.dialect);
}

}  // namespace

DType mode_of(const JudgedTrace& judged) {
  return judged.dialect.fp8.linear ? DType::fp8 : judged.dtype;
}

bool has_decisions(const Trace& trace) {
  return any_name(trace, [](const TapName& tap) { return tap.info.is_decision(); });
}

bool same_function(const ModelConfig& config, Dialect a, Dialect b) {
  for (Dialect* d : {&a, &b}) {
    d->name.clear();
    d->rounding = RoundingStyle::spec;  // both styles are right
    if (!config.yarn || config.yarn->mscale == config.yarn->mscale_all_dim) {
      d->rope.yarn_amplitude = false;
      d->attention.mscale_from_mscale = false;
    }
  }
  return a == b;
}

CaseRun::CaseRun(Case c, Batch batch, const WeightSource& weights, bool backward,
                 RunSettings settings, Objective objective)
    : case_(as_trained(objective, std::move(c))),
      batch_(std::move(batch)),
      weights_(weights),
      model_(reference::make_reference(case_.config, weights_)),
      backward_(backward && case_.chunks.empty()),
      settings_(std::move(settings)),
      objective_(objective) {}

CaseRun::CaseRun(const Case& c, bool backward, RunSettings settings, Objective objective)
    : CaseRun(c, make_batch(c), std::make_unique<SyntheticWeights>(c), backward,
              std::move(settings), objective) {}

CaseRun::CaseRun(Case c, Batch batch, std::unique_ptr<const WeightSource> own, bool backward,
                 RunSettings settings, Objective objective)
    : CaseRun(std::move(c), std::move(batch), *own, backward, std::move(settings), objective) {
  own_weights_ = std::move(own);
}

Trace CaseRun::run(RunOptions options, const std::string& what, const std::string& impl) const {
  options.device = settings_.device;
  options.objective = objective_;
  if (!options.wanted) options.wanted = settings_.wanted;
  set_threads(settings_.threads > 0 ? settings_.threads : threads_for(case_));
  options.progress = [&](const std::string& where) {
    if (settings_.interrupted && settings_.interrupted()) {
      throw Error(ExitCode::interrupted,
                  {.where = case_.name, .what = "run", .expected = "to finish", .got = "a stop"});
    }
    if (settings_.progress) settings_.progress(case_.name + ": " + what + ": " + where);
  };
  if (options.segment) options.progress("running");  // which has no steps to tell of
  const auto start = std::chrono::steady_clock::now();
  Trace trace = impl == model_->name()
                    ? model_->run(batch_, options)
                    : make_model(impl, case_.config, weights_)->run(batch_, options);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const int64_t layers = options.segment ? 1 : case_.config.num_hidden_layers;
  passes_.push_back({what, layers * (options.backward ? 2 : 1), took.count()});
  return trace;
}

std::optional<Trace> CaseRun::twin(RunOptions options, const std::string& what) const {
  if (options.dtype == DType::float64) return std::nullopt;
  options.summation = Summation::sequential;
  RoundingStyle& rounding = options.dialect.rounding;
  rounding = rounding == RoundingStyle::spec ? RoundingStyle::transformers : RoundingStyle::spec;
  return run(options, what + ", twin");
}

ForcedTraces CaseRun::forced_traces(const Dialect& dialect, const Trace* decisions) const {
  ForcedTraces traces{.dialect = dialect};
  // Nothing trains in fp8 mode.
  const bool backward = backward_ && !dialect.fp8.linear;
  RunOptions options{.dtype = DType::float64, .dialect = dialect, .backward = backward};
  replay(options, decisions);
  // It is held beside every other run, and in the widest type.
  options.room = [this](DType dtype, const Shape& shape) {
    waiting_.rest();
    return waiting_.tensor(dtype, shape);
  };
  traces.oracle = run(options, "oracle");
  waiting_.rest();
  options.room = {};
  const Trace in_force =
      decisions_in_force(decisions != nullptr ? *decisions : Trace(), traces.oracle);
  replay(options, &in_force);
  options.measure = measured(traces.oracle, &in_force);
  traces.probe =
      drawn_out(case_, run(probe_options(case_, options), "condition probe"), traces.oracle);
  return traces;
}

decltype(RunOptions::measure) CaseRun::measured(const Trace& oracle, const Trace* in_force) const {
  auto measure = measured_against(oracle, in_force, case_.config, batch_);
  return [this, measure = std::move(measure)](const std::string& name, const HostTensor& value) {
    waiting_.rest();
    return measure(name, value);
  };
}

std::map<std::string, HostTensor> CaseRun::router_biases() const {
  std::map<std::string, HostTensor> biases;
  for (const WeightSpec& spec : weight_specs(case_.config)) {
    if (is_buffer(spec.name)) biases[spec.name] = weights_.load(spec);
  }
  return biases;
}

HostTensor CaseRun::router_bias(int64_t layer) const {
  const std::string name =
      "model.layers." + std::to_string(layer) + ".mlp.gate.e_score_correction_bias";
  for (const WeightSpec& spec : layer_weight_specs(case_.config, layer))
    if (spec.name == name) return weights_.load(spec);
  throw Error(ExitCode::internal,
              {.where = case_.name, .what = "bias", .expected = "an expert layer", .got = name});
}

Evidence CaseRun::evidence_of(const JudgedTrace& judged) const {
  return {.subject = judged.subject,
          .c = &case_,
          .batch = &batch_of(judged),
          .objective = objective_,
          .dtype = judged.dtype,
          .excluded_experts_at_zero = judged.dialect.router.group_fill_zero,
          .is_file = judged.is_file,
          .ops_only = judged.ops_only,
          .unheld = judged.impl.empty() ? std::vector<std::string>{} : unheld_taps(judged.impl),
          .judged = judged.trace,
          .golden = judged.golden,
          .biases = router_biases(),
          .pieces = judged.pieces,
          .sums = judged.sums,
          .after_each_tap = [this] { waiting_.rest(); },
          .emitted = judged.emitted};
}

std::vector<Verdict> CaseRun::judge_staged(const JudgedTrace& judged) const {
  if (!has_stage_inputs(*judged.trace)) return {};
  RunOptions options{.dtype = judged.dtype,
                     .dialect = judged.dialect,
                     .backward = backward_ && !judged.trace->slopes.empty(),
                     .slopes = true,
                     .feeding = Feeding::staged,
                     .feed = stage_inputs(judged)};
  Evidence evidence = evidence_of(judged);
  evidence.fed = options.feed;
  options.dtype = DType::float64;
  const Trace oracle = run(options, "staged oracle");
  evidence.staged.oracle = &oracle;
  options.dtype = judged.dtype;
  options.measure = measured(oracle, options.feed);
  Trace reference;
  std::optional<Trace> twin;
  if (judged.against_reference) {
    reference = run(options, "staged reference");
    evidence.staged.reference = &reference;
    twin = this->twin(options, "staged reference");
    evidence.staged.twin = twin ? &*twin : nullptr;
  }
  const Trace probe = drawn_out(case_, run(probe_options(case_, options), "staged probe"), oracle);
  evidence.staged.probe = &probe;
  std::vector<Verdict> verdicts = harness::judge_staged(evidence);
  append(verdicts, judge_backward(evidence));
  return verdicts;
}

std::vector<Verdict> CaseRun::judge_forced(const JudgedTrace& judged, const ForcedTraces* shared,
                                           std::vector<Verdict> staged) const {
  const bool reuse =
      shared != nullptr && same_function(case_.config, shared->dialect, judged.dialect);
  const ForcedTraces own = reuse ? ForcedTraces{} : forced_traces(judged.dialect, judged.trace);
  const ForcedTraces& forced = reuse ? *shared : own;
  Evidence evidence = evidence_of(judged);
  evidence.forced = {.oracle = &forced.oracle, .probe = &forced.probe};
  Trace reference;
  std::optional<Trace> twin;
  const Trace in_force = decisions_in_force(*judged.trace, forced.oracle);
  if (judged.against_reference && reuse && shared_reference(*shared, case_.config, judged)) {
    evidence.forced.reference = &*shared->reference;
    evidence.forced.twin = shared->twin ? &*shared->twin : nullptr;
  } else if (judged.against_reference) {
    RunOptions options{.dtype = judged.dtype,
                       .dialect = judged.dialect,
                       .backward = backward_ && has_gradients(judged)};
    replay(options, &in_force);
    options.measure = measured(forced.oracle, &in_force);
    reference = run(options, "reference for " + judged.subject.label);
    evidence.forced.reference = &reference;
    twin = this->twin(options, "reference for " + judged.subject.label);
    evidence.forced.twin = twin ? &*twin : nullptr;
  }
  return judge(evidence, std::move(staged));
}

std::vector<Verdict> CaseRun::judge_subject(const JudgedTrace& judged,
                                            const ForcedTraces* shared) const {
  return judge_forced(judged, shared, judge_staged(judged));
}

}  // namespace dsv32::harness
