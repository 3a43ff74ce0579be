#include "harness/job/model_part.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "harness/cases/diagnosis.h"
#include "harness/cases/gradient_patterns.h"
#include "harness/cases/implementations.h"
#include "harness/cases/layers/run.h"
#include "harness/cases/rank_shares.h"
#include "harness/cases/sketched.h"
#include "harness/job/estimate.h"
#include "harness/job/memory.h"
#include "harness/job/provenance.h"
#include "harness/job/streaming.h"
#include "harness/job/weights.h"
#include "harness/judge/noise.h"
#include "harness/training/layer_step.h"
#include "src/io/io.h"
#include "src/io/sha256.h"
#include "src/model/check_name.h"

namespace dsv32::harness {
namespace {

const Subject kGolden{.party = Party::golden, .label = "golden"};

bool contains(const std::vector<std::string>& list, const std::string& word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

CaseRun make_run(const Job& job, Case c, const WeightSource& weights, const Objective& objective,
                 Heartbeat& heartbeat) {
  Batch batch = io::batch_of_case(c, job.batch_file, "case " + c.name);
  if (job.batch_file) {
    c.B = batch.B;
    c.S = batch.S;
    c.chunks.clear();
    c.sparse = false;
    c.made_up = true;
  }
  if (is_streamed(job, c)) {  // a segment goes over the whole batch in one pass
    c.chunks.clear();
    batch.chunks.clear();
  }
  const bool trains = job.dtypes != std::vector<DType>{DType::fp8} || !job.candidates.empty();
  const bool backward = contains(job.suites, "backward") && trains;
  if (is_streamed(job, c)) {
    refuse_streaming_that_does_not_fit(c, job);
  } else {
    refuse_what_does_not_fit(c, judging_bytes(c, backward));
  }
  return {std::move(c),
          batch,
          weights,
          backward,
          {.device = job.device,
           .progress =
               [&job, &heartbeat](const std::string& text) {
                 heartbeat.beat(text);
                 if (job.progress) job.progress(text);
               },
           .interrupted = job.interrupted},
          objective};
}

/// Why these taps are not judged.
void say_derived(std::vector<Verdict>& verdicts, const std::vector<std::string>& derived) {
  for (Verdict& verdict : verdicts)
    if (verdict.trust == Trust::skipped && contains(derived, verdict.tap))
      verdict.note = "computed by the dump, not by the implementation";
}

/// The decisions in force in place of the run's own choice, which the staged verdicts judge.
void put_decisions(const Trace& decisions, Trace& trace) {
  for (const std::string& name : decisions.names()) {
    if (is_decision(name) && trace.has(name)) trace.put(name, *decisions.find(name));
  }
}

/// After a crash a tap that is not there was never reached, and nobody expects a result.
void tell_unreached(std::vector<Verdict>& verdicts) {
  const std::string result = rule_name("result");
  std::erase_if(verdicts, [&](const Verdict& v) { return v.tap == result; });
  for (Verdict& verdict : verdicts)
    if (verdict.trust == Trust::skipped) verdict.note = "never reached: it crashed before";
}

/// Mode `ops`: no end to end, so no result is asked for.
std::vector<Verdict> ops_verdicts(const JudgedTrace& file, std::vector<Verdict> verdicts) {
  const bool none = std::all_of(verdicts.begin(), verdicts.end(),
                                [](const Verdict& v) { return v.trust == Trust::skipped; });
  if (none)
    verdicts.push_back({.subject = file.subject,
                        .tap = rule_name("taps"),
                        .trust = Trust::missing,
                        .note = "no op is there together with its inputs"});
  return verdicts;
}

/// Of our implementations: on FP8 weights fp8 too, where nothing else was asked for and the case is
/// no large one.
std::vector<DType> dtypes_of(const Job& job, const Case& c, const WeightSource& weights) {
  std::vector<DType> dtypes = job.dtypes;
  const bool small = job.candidates.empty() && !is_streamed(job, c);
  if (dtypes == Job{}.dtypes && weights.fp8() && small) dtypes.push_back(DType::fp8);
  return dtypes;
}

std::vector<Verdict> file_verdicts(const CaseRun& run, const JudgedTrace& file) {
  std::vector<Verdict> staged = run.judge_staged(file);
  tell_wrong_summands(run, file, staged);
  for (Verdict& verdict : judge_staged_rows(run, file)) staged.push_back(std::move(verdict));
  if (file.ops_only) return ops_verdicts(file, std::move(staged));
  return run.judge_forced(file, nullptr, std::move(staged));
}

/// What the gradients that fail have in common.
Diagnosis common_to_gradients(const std::vector<Verdict>& verdicts) {
  Diagnosis diagnosis;
  for (GradientPattern& pattern : gradient_patterns(verdicts)) {
    diagnosis.causes.push_back("not explained: " + pattern.words);
    diagnosis.defects.push_back({.words = pattern.words, .taps = std::move(pattern.taps)});
  }
  return diagnosis;
}

}  // namespace

CaseJob::CaseJob(const Job& job, Case c, const Objective& objective, Report& report)
    : job_(job),
      report_(report),
      weights_(open_weights(job.weights, c, job.layers)),
      heartbeat_(is_streamed(job, c) ? job.folder : std::filesystem::path(), c.name),
      run_(make_run(job, std::move(c), *weights_, objective, heartbeat_)),
      findings_(job, report, run_.the_case().name),
      store_(job.cache.empty() ? job.cache : job.cache / "verdicts") {
  for (const std::string& note : weights_->notes())
    report.not_tested.push_back(job.weights + ": " + note);
}

void CaseJob::run_golden_and_own() {
  const Case& c = run_.the_case();
  std::optional<golden::Golden> golden = load_golden();
  // The golden's decisions serve everybody unless its dialect is another function in this case.
  const bool common = golden && same_function(c.config, find_dialect(golden->dialect), {});
  Trace own_decisions;
  if (!common) {
    own_decisions = run_.run({.dtype = DType::float32, .wanted = is_decision}, "reference float32");
  }
  const Trace& decisions = common ? golden->trace : own_decisions;
  // Staged first: its traces are gone before the end-to-end ones, the largest, are made.
  const std::vector<JudgedTrace> own = own_traces();
  std::vector<std::vector<Verdict>> staged;
  for (const JudgedTrace& judged : own) staged.push_back(staged_verdicts(judged));
  ForcedTraces shared = run_.forced_traces({}, &decisions);
  const auto& dtypes = job_.dtypes;
  if (common && std::find(dtypes.begin(), dtypes.end(), golden->dtype) != dtypes.end()) {
    shared.reference_dtype = golden->dtype;
    const JudgedTrace reference = own_trace("reference", golden->dtype);
    shared.reference = forced_run(reference, decisions);
    shared.twin = run_.twin({.dtype = reference.dtype,
                             .dialect = reference.dialect,
                             .backward = run_.backward(),
                             .feeding = Feeding::forced,
                             .feed = &decisions,
                             .measure = run_.measured(shared.oracle, &decisions)},
                            reference.subject.label);
  }
  if (golden) judge_golden(*golden, common ? &shared : nullptr);
  for (size_t i = 0; i < own.size(); ++i)
    judge_own(own[i], std::move(staged[i]), decisions, shared);
  const auto is_oracle = [](const JudgedTrace& judged) {
    return judged.subject.party == Party::reference && judged.dtype == DType::float64;
  };
  if (!golden && std::all_of(own.begin(), own.end(), is_oracle))
    findings_.add(own.front().subject, {{.tap = rule_name("evidence"),
                                         .trust = Trust::vacuous,
                                         .note = "the oracle against itself: this cannot fail"}});
  if (!golden && c.golden == "none")
    report_.not_tested.push_back(c.name + ": there is no golden of this case");
  keep_witnesses();
}

void CaseJob::recall_golden_and_own() {
  const std::string& name = run_.the_case().name;
  const std::string key = witness_key();
  const auto known = key.empty() ? std::nullopt : store_.find(key);
  if (!known) {
    report_.not_tested.push_back(name +
                                 ": golden and own models; --all judges them beside the candidate");
    return;
  }
  report_.environment["golden and own models of " + name] =
      described(*known) + ", as an earlier run of this program found; --all judges them again";
  findings_.recall(*known);
}

/// What the verdicts about golden and own models depend on; empty: they are not the case's own.
std::string CaseJob::witness_key() const {
  const Case& c = run_.the_case();
  if (job_.batch_file || job_.seed || job_.weights != "synthetic" || !job_.filter.empty() ||
      run_.objective().kl != KlStage::none)
    return "";
  io::Sha256 key;
  const auto add = [&](const std::string& text) { key.update(text.c_str(), text.size() + 1); };
  add(io::sha256_file("/proc/self/exe"));
  add(io::case_json(c));
  if (golden::exists(c.name)) add(golden_digest(c.name));
  add(run_.backward() ? "with backward" : "forward");
  add(job_.device);
  return key.hex();
}

void CaseJob::keep_witnesses() {
  const std::string key = witness_key();
  if (!key.empty()) store_.keep(key, findings_.witnesses());
}

void CaseJob::settle() {
  findings_.settle();
  for (const Pass& pass : run_.passes())
    report_.passes.push_back({.case_name = run_.the_case().name,
                              .what = pass.what,
                              .layers = pass.layers,
                              .seconds = pass.seconds});
}

LayerRunOptions CaseJob::layer_options() {
  const Case& c = run_.the_case();
  return {.selection =
              job_.layers.empty() ? every_layer(c.config) : parse_layers(job_.layers, c.config),
          .forward = contains(job_.suites, "forward") || !goes_back(job_),
          .backward = goes_back(job_),
          .step = adamw_step(),
          .twins = affords_twins(c),
          .finished = [this](const SegmentCost& cost) {
            report_.costs.push_back(
                {.case_name = run_.the_case().name,
                 .suite = to_string(cost.segment) + (cost.backward ? " backward" : ""),
                 .seconds = cost.seconds,
                 .peak_gib = peak_memory_bytes() / kGiB});
            reset_peak_memory();
            heartbeat_.finished(cost);
          }};
}

void CaseJob::run_layers() {
  const Case& c = run_.the_case();
  LayerRunOptions options = layer_options();
  const std::vector<JudgedTrace> subjects = own_traces();
  std::optional<Journal> journal;
  if (!job_.folder.empty()) {
    journal.emplace(
        job_.folder, c.name,
        std::map<std::string, std::string>{{"command", job_.command},
                                           {"program", io::sha256_file("/proc/self/exe")},
                                           {"weights", weights_->identity()},
                                           {"case", io::case_json(c)}});
    const size_t all = count_segments(options, c.config);
    options.reached = [&journal, all](const LayerProgress& progress) {
      journal->write(progress, all);
    };
    if (job_.resume) options.from = journal->read();
  }
  for (LayerVerdicts& one : judge_layers(run_, subjects, options)) {
    const Diagnosis common = options.backward ? common_to_gradients(one.verdicts) : Diagnosis{};
    findings_.add(one.subject, std::move(one.verdicts), common);
  }
  list_what_no_layer_shows(options);
}

void CaseJob::list_what_no_layer_shows(const LayerRunOptions& options) {
  const Case& c = run_.the_case();
  const auto list = [&](const std::string& text) {
    report_.not_tested.push_back(c.name + ": " + text);
  };
  const auto list_kept = [&](const char* taps, size_t kept) {
    if (static_cast<int64_t>(kept) < c.S)
      list(std::string(taps) + " of all but " + std::to_string(kept) + " of " +
           std::to_string(c.S) + " tokens");
  };
  const std::string passes = !options.backward ? "forward"
                             : options.forward ? "forward and backward"
                                               : "backward";
  list("nothing but " + describe(options.selection) + ", " + passes + ", without a golden");
  if (options.backward &&
      std::find(job_.dtypes.begin(), job_.dtypes.end(), DType::fp8) != job_.dtypes.end())
    list("gradients of fp8: nothing trains in this mode");
  if (options.forward)
    list_kept("attn.logits and attn.probs", kept_queries(c.config, c.B, c.S).size());
  if (options.selection.head) list_kept("logits", kept_logit_rows(c.config, c.B, c.S).size());
  if (!options.twins) list("the noise of sums in another order (no twin)");
}

void CaseJob::run_candidate(const Candidate& candidate) {
  const io::CandidateNotes notes = io::candidate_notes(candidate.trace, candidate.path.string());
  check_weights_identity(candidate, run_.weights());
  report_.judged.push_back(provenance_of(candidate, notes));
  std::vector<Verdict> verdicts = verdicts_on_loading(candidate, notes);
  const bool broken_start = !verdicts.empty() && verdicts.front().trust == Trust::fail &&
                            check_of(verdicts.front().tap).scope == CheckScope::rule;
  const Trace held = held_by(candidate, notes);
  const JudgedTrace file = judged_file(candidate, held);
  if (!candidate.trace.empty()) {
    score(candidate.subject, held);
    std::vector<Verdict> judged = file_verdicts(run_, file);
    say_derived(judged, notes.derived_taps);
    if (job_.noise) widen(candidate, judged);
    std::move(judged.begin(), judged.end(), std::back_inserter(verdicts));
  } else if (!notes.failure) {
    verdicts.push_back({.tap = rule_name("taps"),
                        .trust = Trust::missing,
                        .note = "there is no tap in this file"});
  }
  if (notes.failure) tell_unreached(verdicts);
  findings_.add(candidate.subject, verdicts,
                broken_start ? Diagnosis{} : diagnose_sketched(run_, file, verdicts));
  list_untested(candidate, notes);
}

void CaseJob::list_untested(const Candidate& candidate, const io::CandidateNotes& notes) {
  const auto add = [&](const std::string& what, const char* why) {
    report_.not_tested.push_back(candidate.subject.label + ": " + what + why);
  };
  for (const std::string& name : notes.unjudged_tensors)
    add(name, " is not judged in this version");
  if (notes.failure) return;  // its taps that are not there were never reached
  for (const std::string& tap : notes.missing_taps)
    add(tap, " was not found in that implementation");
}

/// The file without what the dump computed: that is no evidence about the implementation, and no
/// stage of it read that.
Trace CaseJob::held_by(const Candidate& candidate, const io::CandidateNotes& notes) {
  Trace held = candidate.trace;
  for (const std::string& tap : notes.derived_taps) {
    held.erase(tap);
    held.sketches.erase(tap);
  }
  return held;
}

JudgedTrace CaseJob::judged_file(const Candidate& candidate, const Trace& held) const {
  const DType dtype = parse_dtype(candidate.trace.metadata.at("dtype"));
  return {.subject = candidate.subject,
          .dtype = stored_type(dtype),
          .dialect = in_dtype(find_dialect(job_.dialect), dtype),
          .trace = &held,
          .pieces = &candidate.pieces,
          .sums = &candidate.sums,
          .ops_only = candidate.mode == "ops",
          .is_file = true};
}

/// By the noise of the engine's clean run, of the same case, mode and dtype.
void CaseJob::widen(const Candidate& candidate, std::vector<Verdict>& verdicts) {
  const Candidate clean = read_candidates({*job_.noise}).front();
  const auto same = [&](const char* key) {
    return clean.trace.metadata.at(key) == candidate.trace.metadata.at(key);
  };
  if (io::case_json(clean.the_case) != io::case_json(candidate.the_case) || !same("mode") ||
      !same("dtype"))
    throw Error(ExitCode::artefact, {.where = clean.path.string(),
                                     .what = "noise of " + candidate.subject.label,
                                     .expected = "a run of its case, mode and dtype",
                                     .got = clean.the_case.name + ", " + clean.mode + ", " +
                                            clean.trace.metadata.at("dtype")});
  check_weights_identity(clean, run_.weights());
  const Trace held = held_by(clean, io::candidate_notes(clean.trace, clean.path.string()));
  const CleanRun run{clean.path.filename().string(), file_verdicts(run_, judged_file(clean, held))};
  report_.warnings.push_back(widen_by_noise(run, verdicts));
}

std::optional<golden::Golden> CaseJob::load_golden() {
  const Case& c = run_.the_case();
  if (run_.objective().kl != KlStage::none) {
    report_.not_tested.push_back(c.name +
                                 ": the goldens of the indexer's KL belong to the suite "
                                 "indexer_kl");
    return std::nullopt;
  }
  if (c.golden == "none" || job_.batch_file || job_.seed || job_.weights != "synthetic") {
    if (c.golden != "none")
      report_.not_tested.push_back(c.name + ": the golden is for the case's own batch and weights");
    return std::nullopt;
  }
  if (!golden::exists(c.name)) {
    findings_.add(kGolden, {{.tap = rule_name("golden.file"),
                             .trust = Trust::missing,
                             .note = "no golden of this case; make it with golden/make"}});
    return std::nullopt;
  }
  golden::Golden golden = golden::load(c.name);
  report_.environment["golden " + c.name] = "sha256 " + golden_digest(c.name);
  report_.judged.push_back(provenance_of(golden, kGolden));
  return golden;
}

void CaseJob::judge_golden(const golden::Golden& golden, const ForcedTraces* shared) {
  const JudgedTrace judged{.subject = kGolden,
                           .dtype = golden.dtype,
                           .dialect = in_dtype(find_dialect(golden.dialect), golden.dtype),
                           .trace = &golden.trace,
                           .golden = &golden};
  findings_.add(kGolden, run_.judge_subject(judged, shared));
}

/// Without its trace, which is made when its turn has come.
JudgedTrace CaseJob::own_trace(const std::string& impl, DType dtype) const {
  std::string note = " " + std::string(to_string(dtype));
  if (run_.objective().kl == KlStage::warmup) note += ", kl-warmup";
  if (run_.objective().kl == KlStage::sparse) note += ", kl-sparse";
  JudgedTrace own{.subject = implementation_subject(impl, note),
                  .impl = impl,
                  .dtype = stored_type(dtype),
                  .dialect = in_dtype({}, dtype)};
  own.against_reference = own.subject.party != Party::reference;
  if (is_narrow(dtype) && rounds_every_op(impl)) own.dialect.rounding = RoundingStyle::transformers;
  return own;
}

/// Why it cannot run so in this case; empty: it can.
std::string CaseJob::why_not(const std::string& impl, DType dtype) const {
  if (dtype == DType::fp8 && !weights_->fp8())
    return "fp8: expected FP8 weights, got " + weights_->identity() +
           " (--weights synthetic-fp8 or an FP8 checkpoint)";
  if (dtype == DType::fp8 && run_.objective().kl != KlStage::none)
    return "fp8: expected a forward pass, nothing trains in this mode";
  const int64_t size = run_.the_case().config.index_head_dim;
  if (dtype == DType::fp8 && !std::has_single_bit(static_cast<uint64_t>(size)))
    return "fp8: index_head_dim: expected a power of two, for the Hadamard rotation, got " +
           std::to_string(size);
  return cannot_run(impl, run_.the_case().config, dtype, job_.device);
}

/// Every implementation in every dtype that it has; the others are named with their reason.
std::vector<JudgedTrace> CaseJob::own_traces() {
  const Case& c = run_.the_case();
  std::vector<JudgedTrace> traces;
  std::string reason;
  for (const std::string& impl : job_.impls) {
    for (const DType dtype : dtypes_of(job_, c, *weights_)) {
      const std::string why = why_not(impl, dtype);
      if (why.empty()) {
        traces.push_back(own_trace(impl, dtype));
      } else {
        reason = impl + ": " + why;
        report_.not_tested.push_back(c.name + ": " + reason);
      }
    }
  }
  if (!traces.empty()) return traces;
  throw Error(ExitCode::usage, {.where = "case " + c.name,
                                .what = "nothing that was asked for can run",
                                .expected = "an implementation, dtype and device that go together",
                                .got = reason});
}

/// Somebody wants to know how well the labels of a batch of one's own are predicted.
bool CaseJob::scores_answers() const {
  return job_.batch_file.has_value() && counts_labels(run_.batch());
}

void CaseJob::score(const Subject& subject, const Trace& trace) {
  if (!scores_answers()) return;
  const HostTensor* logits = trace.find("logits");
  if (logits == nullptr || !are_logits_of(*logits, run_.batch())) {
    report_.not_tested.push_back(subject.label + ": loss of each example: no logits of all tokens");
    return;
  }
  report_.answers.push_back({.case_name = run_.the_case().name,
                             .subject = subject,
                             .examples = score_answers(*logits, run_.batch())});
}

void CaseJob::score_oracle() {
  if (!scores_answers() || is_streamed(job_, run_.the_case())) return;
  const Subject oracle{.party = Party::reference, .label = "oracle"};
  const auto wanted = [](const std::string& name) { return name == "logits"; };
  score(oracle, run_.run({.dtype = DType::float64, .wanted = wanted}, "oracle of the answers"));
}

/// On a free run with its own decisions. They are about forward taps alone.
std::vector<Verdict> CaseJob::staged_verdicts(JudgedTrace own) {
  if (!contains(job_.suites, "forward")) return {};
  const Trace free = run_.run({.dtype = own.dtype, .dialect = in_dtype({}, mode_of(own))},
                              own.subject.label, own.impl);
  own.trace = &free;
  score(own.subject, free);
  return run_.judge_staged(own);
}

/// End to end under the decisions that all subjects share.
Trace CaseJob::forced_run(const JudgedTrace& own, const Trace& decisions) const {
  const RunOptions options{.dtype = own.dtype,
                           .dialect = in_dtype({}, mode_of(own)),
                           .backward = run_.backward() && mode_of(own) != DType::fp8,
                           .feeding = Feeding::forced,
                           .feed = &decisions};
  return run_.run(options, own.subject.label, own.impl);
}

/// End to end; its staged verdicts were given before.
void CaseJob::judge_own(JudgedTrace own, std::vector<Verdict> staged, const Trace& decisions,
                        const ForcedTraces& shared) {
  const bool made = own.subject.party == Party::reference && shared.reference &&
                    shared.reference_dtype == mode_of(own);
  Trace forced = made ? *shared.reference : forced_run(own, decisions);
  put_decisions(decisions, forced);
  own.trace = &forced;
  findings_.add(own.subject, run_.judge_forced(own, &shared, std::move(staged)));
}

}  // namespace dsv32::harness
