#include "harness/cases/generated.h"

#include <algorithm>

#include "harness/judge/decisions/decisions.h"
#include "harness/judge/limits.h"
#include "harness/judge/measure/metrics.h"
#include "src/model/dialect.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

constexpr char kTokens[] = "gen.tokens", kLogits[] = "gen.logits";

bool is_kept(const std::string& tap) { return tap == "logits" || is_decision(tap); }

/// What a decoding is measured by: all that follows from the history but is not looked at is not
/// kept, so that a long one fits.
bool is_measured(const std::string& tap) {
  const std::string stem = tap_stem(tap);
  return is_kept(tap) || stem == "ix.scores" || stem == "router.logits";
}

/// gen.logits [B,N,vocab] as rows of `logits` of the history; steps behind the end of a row are
/// left out.
TapSketch rows_of(const HostTensor& logits, const History& history) {
  const Batch& batch = history.batch();
  const int64_t N = logits.shape()[1], vocab = logits.shape()[2];
  TapSketch sketch{.shape = {batch.B, batch.S, vocab}};
  for (int64_t b = 0; b < batch.B; ++b)
    for (int64_t step = 0; step < history.counted(b); ++step) {
      sketch.row_index.push_back(b * batch.S + history.query(step));
      for (int64_t token = 0; token < vocab; ++token)
        sketch.rows.push_back(static_cast<float>(logits.at((b * N + step) * vocab + token)));
    }
  return sketch;
}

/// The rows of the emitting queries, [B,N,vocab].
HostTensor emitting_rows(const HostTensor& logits, int64_t first, int64_t steps) {
  const int64_t B = logits.shape()[0], S = logits.shape()[1], vocab = logits.shape()[2];
  std::vector<double> values;
  values.reserve(static_cast<size_t>(B * steps * vocab));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < steps * vocab; ++i)
      values.push_back(logits.at((b * S + first) * vocab + i));
  return HostTensor::from_doubles(logits.dtype(), {B, steps, vocab}, values);
}

/// The taps are those of the history; a verdict is about a step.
void tell_steps(const History& history, Verdict& verdict) {
  if (verdict.tap != "logits") return;
  verdict.tap = kLogits;
  verdict.picture.reset();  // of rows that nobody handed in
  if (!verdict.worst || verdict.worst->index.size() < 2) return;
  verdict.worst->index[1] -= history.query(0);
  if (verdict.note.empty()) verdict.note = "step " + std::to_string(verdict.worst->index[1]);
}

const Verdict* failure_of(const std::vector<Verdict>& verdicts, const std::string& tap) {
  const auto found = std::find_if(verdicts.begin(), verdicts.end(), [&](const Verdict& v) {
    return v.tap == tap && v.trust == Trust::fail;
  });
  return found == verdicts.end() ? nullptr : &*found;
}

/// Faults of decoding that the reference can show, by their names in the catalogue.
const std::vector<std::string>& decoding_faults() {
  static const std::vector<std::string> names = {
      "position-after-prompt", "positions-per-chunk",   "position-offset",
      "positions-row0",        "cache-other-row",       "padding-mask-missing",
      "k-of-queries",          "index-cache-forgotten", "mask-added",
      "causal-mask-missing"};
  return names;
}

const KnownBug& known_bug(const std::string& name) {
  for (const KnownBug& bug : known_bugs())
    if (bug.name == name) return bug;
  throw Error(ExitCode::internal, {.where = "decoding fault", .what = "unknown", .got = name});
}

}  // namespace

GenerateRun::GenerateRun(Case c, Batch prompt, const WeightSource& weights, RunSettings settings)
    : case_(std::move(c)),
      prompt_(std::move(prompt)),
      weights_(weights),
      settings_(std::move(settings)) {
  settings_.wanted = is_measured;
  prompt_.chunks.clear();
  case_.chunks.clear();
  const int64_t last = case_.S + case_.decoding.steps - 1;
  if (last > case_.config.max_position_embeddings)
    throw Error(ExitCode::usage,
                {.where = "generate",
                 .what = "case " + case_.name + ": positions",
                 .expected = "at most " + std::to_string(case_.config.max_position_embeddings),
                 .got = std::to_string(last)});
  History(prompt_, case_.decoding);  // refuses padding on the right
}

Trace GenerateRun::decode(const std::string& impl, RunOptions options) const {
  options.decoding = case_.decoding;
  options.wanted = is_kept;
  const CaseRun run(case_, prompt_, weights_, false, settings_);
  Trace trace = run.run(options, "decoding, " + impl, impl);
  trace.put(kLogits, emitting_rows(*trace.find("logits"), case_.S - 1, case_.decoding.steps));
  trace.erase("logits");
  return trace;
}

/// A token outside of the vocabulary is judged elsewhere; here it must only not break the runs.
History GenerateRun::history_of(const HostTensor& tokens) const {
  const Decoding& decoding = case_.decoding;
  History history(prompt_, decoding);
  for (int64_t step = 0; step < decoding.steps; ++step) {
    std::vector<int64_t> emitted;
    for (int64_t b = 0; b < prompt_.B; ++b) {
      const auto token = static_cast<int64_t>(tokens.at(b * decoding.steps + step));
      emitted.push_back(std::clamp<int64_t>(token, 0, case_.config.vocab_size - 1));
    }
    history.emit(emitted);
  }
  return history;
}

CaseRun GenerateRun::run_of(const History& history, bool in_steps) const {
  Case c = case_;
  const Batch& batch = in_steps ? history.in_steps() : history.batch();
  c.S = batch.S;
  c.chunks = batch.chunks;
  return {std::move(c), batch, weights_, false, settings_};
}

std::vector<Verdict> GenerateRun::verdicts_of(const CaseRun& run, const History& history,
                                              const JudgedDecoding& judged,
                                              const Batch* looked_at) const {
  Trace held;
  for (const std::string& name : judged.trace->names())
    if (is_decision(name)) held.put(name, *judged.trace->find(name));
  if (const HostTensor* logits = judged.trace->find(kLogits))
    held.sketches["logits"] = rows_of(*logits, history);
  const Emitted emitted{judged.trace->find(kTokens), case_.decoding, &history};
  std::vector<Verdict> verdicts = run.judge_forced({.subject = judged.subject,
                                                    .dtype = judged.dtype,
                                                    .dialect = judged.dialect,
                                                    .trace = &held,
                                                    .batch = looked_at,
                                                    .is_file = true,
                                                    .emitted = emitted,
                                                    .against_reference = judged.against_reference});
  for (Verdict& verdict : verdicts) tell_steps(history, verdict);
  return verdicts;
}

/// The reference with a fault decides as the subject does, and under the subject's decisions gives
/// its logits.
bool GenerateRun::explains(const KnownBug& bug, const History& history,
                           const JudgedDecoding& judged) const {
  const CaseRun run = run_of(history, /*in_steps=*/true);
  RunOptions options{.dtype = judged.dtype, .dialect = judged.dialect, .wanted = is_kept};
  bug.plant(options.dialect);
  Trace made = run.run(options, "decoding with " + bug.name);
  if (has_decisions(*judged.trace)) {
    FlipCount all;
    for (const std::string& name : judged.trace->names()) {
      if (!is_decision(name)) continue;
      const FlipCount one =
          count_flips(*judged.trace->find(name), *made.find(name), history.batch());
      all.rows += one.rows;
      all.differing_rows += one.differing_rows;
    }
    const double share = static_cast<double>(all.differing_rows) / static_cast<double>(all.rows);
    if (share > limit_of("decoding.named")) return false;
    options.feeding = Feeding::forced;
    options.feed = judged.trace;
    made = run.run(options, "decoding with " + bug.name);
  }
  const HostTensor* logits = judged.trace->find(kLogits);
  if (logits == nullptr) return has_decisions(*judged.trace);
  const HostTensor whole = *made.find("logits");
  const std::vector<float>
      theirs = rows_of(*logits, history).rows,
      ours = rows_of(emitting_rows(whole, history.query(0), case_.decoding.steps), history).rows;
  const std::vector<double> a(theirs.begin(), theirs.end()), b(ours.begin(), ours.end());
  return relative(a, b) <= limit_of("pair.relative", {.dtype = judged.dtype});
}

/// Nothing fails when only the prompt and the first token are looked at.
bool GenerateRun::is_right_in_prompt(const History& history, const JudgedDecoding& judged) const {
  Batch prompt = history.batch();
  for (int64_t b = 0; b < prompt.B; ++b)
    for (int64_t s = case_.S; s < prompt.S; ++s) prompt.attention_mask[b * prompt.S + s] = 0;
  const std::vector<Verdict> verdicts =
      verdicts_of(run_of(history, false), history, judged, &prompt);
  return std::none_of(verdicts.begin(), verdicts.end(),
                      [](const Verdict& v) { return v.trust == Trust::fail && v.tap != kTokens; });
}

std::vector<std::string> GenerateRun::causes_of(const JudgedDecoding& judged,
                                                const std::vector<Verdict>& verdicts) const {
  std::vector<std::string> causes;
  const Verdict* tokens = failure_of(verdicts, kTokens);
  if (tokens != nullptr && tokens->note.starts_with("eos ignored")) causes.push_back(tokens->note);
  const bool others = std::any_of(verdicts.begin(), verdicts.end(), [](const Verdict& v) {
    return v.trust == Trust::fail && v.tap != kTokens;
  });
  if (!others) return causes;
  const History history = history_of(*judged.trace->find(kTokens));
  for (const std::string& name : decoding_faults()) {
    const KnownBug& bug = known_bug(name);
    if (!explains(bug, history, judged)) continue;
    causes.push_back("known bug " + name + ": " + bug.description);
    return causes;
  }
  if (!is_right_in_prompt(history, judged)) {
    causes.push_back("wrong in the prompt already: a trace of mode forward shows the op");
    return causes;
  }
  const bool selection = judged.trace->has(kLogits) && failure_of(verdicts, kLogits) == nullptr;
  causes.push_back(selection ? "right in the prompt; what is selected after it is not: the "
                               "indexer's cache"
                             : "right in the prompt and not after it: the cache, or the positions "
                               "of single tokens");
  return causes;
}

DecodingVerdicts GenerateRun::judge(const JudgedDecoding& judged) const {
  const HostTensor* tokens = judged.trace->find(kTokens);
  if (tokens == nullptr)
    return {.verdicts = {{.subject = judged.subject,
                          .tap = kTokens,
                          .trust = Trust::missing,
                          .note = "a decoding is judged on the tokens that it emitted"}},
            .causes = {}};
  const History history = history_of(*tokens);
  DecodingVerdicts found;
  found.verdicts = verdicts_of(run_of(history, false), history, judged);
  found.causes = causes_of(judged, found.verdicts);
  return found;
}

}  // namespace dsv32::harness
