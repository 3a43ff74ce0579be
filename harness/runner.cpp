#include "harness/runner.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <sstream>

#include "golden/golden.h"
#include "harness/case_run.h"
#include "harness/causes.h"
#include "harness/judge.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/reference/reference.h"

namespace dsv32::harness {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool contains(const std::vector<std::string>& list, const std::string& word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

std::string headline(const Verdict& failure) {
  std::ostringstream text;
  text << "first divergence " << failure.tap << " (" << to_string(failure.mode) << ")";
  const auto worst =
      std::max_element(failure.measures.begin(), failure.measures.end(),
                       [](const Measure& a, const Measure& b) { return a.margin() < b.margin(); });
  if (worst != failure.measures.end()) {
    text << ": " << worst->metric << " " << short_number(worst->measured) << ", limit "
         << short_number(worst->limit);
  }
  return text.str();
}

/// Bytes of the largest live tensors of a run: the attention matrix of one layer in float64, a few
/// times over.
double peak_bytes(const Case& c) {
  const double attention = 1.0 * c.B * c.config.num_attention_heads * c.S * c.S;
  const double kept = c.config.num_hidden_layers * 2 * attention;
  return 8 * (6 * attention + kept);
}

double memory_bytes() {
  double bytes = 0;
  if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
    long kib = 0;
    char line[128];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      if (std::sscanf(line, "MemAvailable: %ld kB", &kib) == 1) bytes = 1024.0 * kib;
    }
    std::fclose(file);
  }
  return bytes;
}

void refuse_what_does_not_fit(const Case& c) {
  const double needed = peak_bytes(c), there = memory_bytes();
  if (there <= 0 || needed <= there) return;
  const double gib = 1024.0 * 1024 * 1024;
  throw Error(ExitCode::environment,
              {.where = "case " + c.name,
               .what = "memory",
               .expected = short_number(needed / gib) + " GiB available",
               .got = short_number(there / gib) + " GiB",
               .hint = "the attention matrices of this case are held whole in this version"});
}

/// The taps of the chosen suites: gradients belong to `backward`, everything else to `forward`.
bool selected(const Job& job, const Verdict& verdict) {
  const bool gradient = verdict.tap.rfind("grad.", 0) == 0;
  if (!contains(job.suites, gradient ? "backward" : "forward") && parse_tap(verdict.tap))
    return false;
  if (job.filter.empty()) return true;
  return (verdict.case_name + "/" + verdict.subject + "/" + verdict.tap).find(job.filter) !=
         std::string::npos;
}

/// One case of a job: its golden, the reference in each dtype, the candidates.
class CaseJob {
 public:
  CaseJob(const Job& job, Case c, Report& report)
      : job_(job), report_(report), run_(make_run(job, std::move(c))) {}

  void run_golden_and_references() {
    const Case& c = run_.the_case();
    std::optional<golden::Golden> golden = load_golden();
    // The golden's decisions serve everybody unless its dialect is another function in this case.
    const bool common =
        golden && same_function(c.config, DType::float64, find_dialect(golden->dialect), {});
    Trace own_decisions;
    if (!common) {
      own_decisions =
          run_.run({.dtype = DType::float32, .wanted = is_decision_name}, "reference float32");
    }
    const Trace& decisions = common ? golden->trace : own_decisions;
    // Staged first: its traces are gone before the end-to-end ones, the largest, are made.
    std::vector<std::vector<Verdict>> staged;
    for (const DType dtype : job_.dtypes) staged.push_back(reference_staged(dtype));
    const ForcedTraces shared = run_.forced_traces({}, &decisions);
    if (golden) judge_golden(*golden, common ? &shared : nullptr);
    for (size_t i = 0; i < staged.size(); ++i) {
      judge_reference(job_.dtypes[i], std::move(staged[i]), decisions, shared);
    }
    if (!golden && c.golden == "none")
      report_.not_tested.push_back(c.name + ": there is no golden of this case");
    settle_faults();
  }

  void run_candidate(const std::filesystem::path& path, const Trace& trace) {
    const std::string where = path.string();
    const io::CandidateNotes notes = io::candidate_notes(trace, where);
    check_weights_identity(trace, where);
    // A fused kernel never held these values: its next stage did not read their rounding.
    Trace held = trace;
    for (const std::string& tap : notes.derived_taps) held.erase(tap);
    Subject subject{.name = "candidate " + path.filename().string(),
                    .dtype = parse_dtype(trace.metadata.at("dtype")),
                    .dialect = find_dialect(job_.dialect),
                    .trace = &trace,
                    .fed = &held,
                    .is_file = true};
    std::vector<Verdict> verdicts = verdicts_on_loading(subject, notes);
    if (!trace.empty()) {
      const std::vector<Verdict> judged = run_.judge_subject(subject);
      verdicts.insert(verdicts.end(), judged.begin(), judged.end());
    } else if (!notes.failure) {
      verdicts.push_back({.case_name = run_.the_case().name,
                          .subject = subject.name,
                          .tap = "taps",
                          .trust = Trust::missing,
                          .note = "there is no tap in this file"});
    }
    const bool broken_start = !verdicts.empty() && verdicts.front().trust == Trust::fail &&
                              !parse_tap(verdicts.front().tap);
    add(subject.name, verdicts,
        broken_start ? std::vector<std::string>{} : causes_of(subject, verdicts));
    for (const std::string& tap : notes.missing_taps) {
      report_.not_tested.push_back(subject.name + ": " + tap +
                                   " was not found in that implementation");
    }
  }

  void settle_faults();

 private:
  static bool is_decision_name(const std::string& name) {
    const auto tap = parse_tap(name);
    return tap && (tap->info.kind == TapKind::topk || tap->info.kind == TapKind::experts);
  }

  static std::shared_ptr<const WeightSource> open_weights(const Job& job, const Case& c) {
    const std::string seeded = "synthetic:";
    if (job.weights.rfind(seeded, 0) == 0) {
      return std::make_shared<SyntheticWeights>(std::stoull(job.weights.substr(seeded.size())),
                                                c.bias_offset);
    }
    if (job.weights == "synthetic")
      return std::make_shared<SyntheticWeights>(c.seed, c.bias_offset);
    return io::open_checkpoint(job.weights, c.config);
  }

  static CaseRun make_run(const Job& job, Case c) {
    const Batch batch = job.batch_file ? io::read_batch(*job.batch_file, c.config) : make_batch(c);
    if (job.batch_file) {
      c.B = batch.B;
      c.S = batch.S;
      c.chunks.clear();
      c.sparse = exercises_selection(c);
    }
    refuse_what_does_not_fit(c);
    auto weights = open_weights(job, c);
    return {std::move(c),
            batch,
            std::move(weights),
            contains(job.suites, "backward"),
            {.device = job.device, .progress = job.progress, .interrupted = job.interrupted}};
  }

  std::optional<golden::Golden> load_golden() {
    const Case& c = run_.the_case();
    if (c.golden == "none" || job_.batch_file || job_.seed || job_.weights != "synthetic") {
      if (c.golden != "none")
        report_.not_tested.push_back(c.name +
                                     ": the golden is for the case's own batch and weights");
      return std::nullopt;
    }
    if (!golden::exists(c.name)) {
      report_.verdicts.push_back(
          {.case_name = c.name,
           .subject = "golden",
           .tap = "golden file",
           .trust = Trust::missing,
           .note = "no golden of this case; make it with golden/generate.py"});
      return std::nullopt;
    }
    golden::Golden golden = golden::load(c.name);
    for (const auto& entry : golden::read_manifest(golden::default_directory())) {
      if (entry.case_name == c.name)
        report_.environment["golden " + c.name] = "sha256 " + entry.sha256;
    }
    return golden;
  }

  void judge_golden(const golden::Golden& golden, const ForcedTraces* shared) {
    const Subject subject{.name = "golden",
                          .dtype = golden.dtype,
                          .dialect = find_dialect(golden.dialect),
                          .trace = &golden.trace,
                          .golden = &golden};
    add(subject.name, run_.judge_subject(subject, shared), {});
  }

  static Subject reference_subject(DType dtype) {
    return {.name = "reference " + std::string(to_string(dtype)),
            .dtype = dtype,
            .against_reference = false};
  }

  /// On a free run with its own decisions.
  std::vector<Verdict> reference_staged(DType dtype) const {
    Subject subject = reference_subject(dtype);
    const Trace free = run_.run({.dtype = dtype}, subject.name);
    subject.trace = &free;
    return run_.judge_staged(subject);
  }

  /// Adds the end-to-end verdicts, under the decisions that all subjects share.
  void judge_reference(DType dtype, std::vector<Verdict> verdicts, const Trace& decisions,
                       const ForcedTraces& shared) {
    Subject subject = reference_subject(dtype);
    const RunOptions options{.dtype = dtype,
                             .backward = run_.backward(),
                             .feeding = Feeding::forced,
                             .feed = &decisions};
    Trace forced = run_.run(options, subject.name);
    put_decisions(decisions, forced);
    subject.trace = &forced;
    for (Verdict& verdict : run_.judge_forced(subject, &shared))
      verdicts.push_back(std::move(verdict));
    add(subject.name, verdicts, {});
  }

  /// The decisions in force in place of the run's own choice, which the staged verdicts judge.
  static void put_decisions(const Trace& decisions, Trace& trace) {
    for (const std::string& name : decisions.names()) {
      if (is_decision_name(name) && trace.has(name)) trace.put(name, *decisions.find(name));
    }
  }

  void check_weights_identity(const Trace& trace, const std::string& where) const {
    const std::string& said = trace.metadata.at("weights");
    const std::string expected = run_.weights().identity();
    if (said == expected) return;
    throw Error(ExitCode::artefact,
                {.where = where,
                 .what = "metadata weights",
                 .expected = expected,
                 .got = said,
                 .hint = "name the checkpoint that the candidate used with --weights DIR"});
  }

  std::vector<Verdict> verdicts_on_loading(const Subject& subject,
                                           const io::CandidateNotes& notes) const {
    std::vector<Verdict> verdicts;
    const auto check = [&](const char* what, bool good, const std::string& note, int64_t checked) {
      verdicts.push_back({.case_name = run_.the_case().name,
                          .subject = subject.name,
                          .tap = what,
                          .mode = Mode::exact,
                          .trust = good ? Trust::pass : Trust::fail,
                          .checked = checked,
                          .note = note});
    };
    if (notes.failure) {
      check("ran to its end", false,
            notes.failure->where + ": " + notes.failure->message +
                (notes.failure->shapes.empty() ? "" : " (shapes " + notes.failure->shapes + ")"),
            1);
    }
    if (notes.weights) {
      const auto& w = *notes.weights;
      const int64_t all = w.identical + static_cast<int64_t>(w.different.size() + w.missing.size());
      check("weights loaded", w.all_there(), loading_note(w), all);
    }
    return verdicts;
  }

  static std::string loading_note(const io::CandidateNotes::LoadedWeights& w) {
    std::string note = std::to_string(w.identical) + " tensors identical to the checkpoint";
    const auto list = [&](const char* what, const std::vector<std::string>& names) {
      if (names.empty()) return;
      note += "; " + std::to_string(names.size()) + " " + what + ":";
      for (size_t i = 0; i < std::min<size_t>(names.size(), 4); ++i) note += " " + names[i];
      if (names.size() > 4) note += " ...";
    };
    list("different (re-initialised, transposed or rounded after loading)", w.different);
    list("missing (never loaded)", w.missing);
    list("unexpected", w.unexpected);
    return note;
  }

  std::vector<std::string> causes_of(const Subject& subject,
                                     const std::vector<Verdict>& verdicts) const {
    return find_causes(run_, subject, verdicts);
  }

  /// Keeps what the job selected, and one finding about the subject.
  void add(const std::string& subject, const std::vector<Verdict>& verdicts,
           const std::vector<std::string>& causes) {
    std::vector<Verdict> kept;
    std::copy_if(verdicts.begin(), verdicts.end(), std::back_inserter(kept),
                 [&](const Verdict& v) { return selected(job_, v); });
    Finding finding{.case_name = run_.the_case().name, .subject = subject, .causes = causes};
    if (const Verdict* failure = first_failure(kept)) {
      finding.first_tap = failure->tap;
      finding.headline = headline(*failure);
    }
    report_.verdicts.insert(report_.verdicts.end(), kept.begin(), kept.end());
    findings_.push_back(finding);
  }

  const Job& job_;
  Report& report_;
  CaseRun run_;
  std::vector<Finding> findings_;
};

/// Who is wrong: needs the answers about golden, reference and candidate together (DESIGN 3,
/// arbitration).
void CaseJob::settle_faults() {
  const auto failed = [&](const std::string& start) {
    return std::any_of(findings_.begin(), findings_.end(), [&](const Finding& f) {
      return f.subject.rfind(start, 0) == 0 && !f.first_tap.empty();
    });
  };
  const bool golden_present = std::any_of(findings_.begin(), findings_.end(),
                                          [](const Finding& f) { return f.subject == "golden"; });
  const bool golden_ok = !failed("golden"), reference_ok = !failed("reference");
  for (Finding& finding : findings_) {
    std::optional<bool> candidate_ok;
    if (finding.subject.rfind("candidate", 0) == 0) candidate_ok = finding.first_tap.empty();
    if (!finding.first_tap.empty())
      finding.fault = arbitrate(golden_ok, golden_present, reference_ok, candidate_ok);
  }
  report_.findings.insert(report_.findings.end(), findings_.begin(), findings_.end());
  findings_.clear();
}

struct Candidate {
  std::filesystem::path path;
  Trace trace;
  Case the_case;
};

std::vector<Candidate> read_candidates(const Job& job) {
  std::vector<Candidate> candidates;
  for (const auto& path : job.candidates) {
    Trace trace = io::read_trace(path);
    Case c = io::case_of_trace(trace);
    candidates.push_back({path, std::move(trace), std::move(c)});
  }
  return candidates;
}

[[noreturn]] void refuse_case(const Candidate& candidate, const std::string& what,
                              const std::string& expected, const std::string& got) {
  throw Error(ExitCode::artefact,
              {.where = candidate.path.string(),
               .what = what,
               .expected = expected,
               .got = got,
               .hint = "a candidate brings its own case; leave --case, --config and --seed away"});
}

void check_agreement(const Job& job, const Candidate& candidate) {
  const Case& c = candidate.the_case;
  if (job.seed && *job.seed != c.seed)
    refuse_case(candidate, "seed", std::to_string(*job.seed), std::to_string(c.seed));
  if (job.cases.empty()) return;
  const bool listed = std::any_of(job.cases.begin(), job.cases.end(), [&](const Case& asked) {
    return io::case_json(asked) == io::case_json(c);
  });
  if (!listed)
    refuse_case(candidate, "case", job.cases.front().name + (job.cases.size() > 1 ? ", ..." : ""),
                c.name);
}

/// Cases of the job, and of candidates that bring another one, each with its candidates.
std::vector<std::pair<Case, std::vector<const Candidate*>>> plan(
    const Job& job, const std::vector<Candidate>& candidates) {
  std::vector<std::pair<Case, std::vector<const Candidate*>>> cases;
  const auto entry = [&](const Case& c) -> std::vector<const Candidate*>& {
    const auto found = std::find_if(cases.begin(), cases.end(), [&](const auto& known) {
      return io::case_json(known.first) == io::case_json(c) &&
             known.first.mask_given == c.mask_given;
    });
    if (found != cases.end()) return found->second;
    return cases.emplace_back(c, std::vector<const Candidate*>{}).second;
  };
  if (candidates.empty()) {
    for (Case c : job.cases) {
      if (job.seed) c.seed = *job.seed;
      entry(c);
    }
  }
  for (const Candidate& candidate : candidates) {
    check_agreement(job, candidate);
    entry(candidate.the_case).push_back(&candidate);
  }
  return cases;
}

std::string metadata_case(const Case& c) {
  for (const Case& listed : io::cases()) {
    if (listed.name == c.name && io::case_json(listed) == io::case_json(c)) return c.name;
  }
  return io::case_json(c);
}

}  // namespace

Report run_job(const Job& job) {
  const auto start = Clock::now();
  Report report{.command = job.command, .suites = job.suites};
  report.environment["torch"] = reference::torch_version();
  report.environment["device"] = job.device;
  const std::vector<Candidate> candidates = read_candidates(job);
  for (const auto& [c, theirs] : plan(job, candidates)) {
    const auto case_start = Clock::now();
    report.cases.push_back(c.name);
    report.warnings.insert(report.warnings.end(), c.config.warnings.begin(),
                           c.config.warnings.end());
    CaseJob case_job(job, c, report);
    case_job.run_golden_and_references();
    for (const Candidate* candidate : theirs)
      case_job.run_candidate(candidate->path, candidate->trace);
    case_job.settle_faults();
    report.timing[c.name] = seconds_since(case_start);
  }
  report.timing["total"] = seconds_since(start);
  return report;
}

std::vector<Verdict> judge_trace(const Case& c, const Trace& judged, DType dtype, bool is_file,
                                 bool backward, const Dialect& dialect) {
  const CaseRun run(c, backward);
  return run.judge_subject({.name = "candidate",
                            .dtype = dtype,
                            .dialect = dialect,
                            .trace = &judged,
                            .is_file = is_file});
}

Trace make_trace(const Case& c, const std::string& impl, DType dtype, const std::string& mode,
                 const Dialect& dialect, const std::string& device) {
  const bool backward = mode == "backward";
  const CaseRun run(c, backward, {.device = device});
  Trace trace =
      run.run({.dtype = dtype, .dialect = dialect, .backward = backward && run.backward()}, impl);
  trace.metadata = {{"format", "dsv32-verify.trace"},
                    {"version", "1"},
                    {"case", metadata_case(c)},
                    {"mode", mode},
                    {"dtype", std::string(to_string(dtype))},
                    {"rope_layout", "interleaved"},
                    {"producer", "{\"dialect\":\"" + dialect.name + "\",\"implementation\":\"" +
                                     impl + "\",\"torch\":\"" + reference::torch_version() + "\"}"},
                    {"weights", run.weights().identity()},
                    {"forced", "false"},
                    {"attn_implementation", impl},
                    {"mask", c.mask_given ? "given" : "none"}};
  return trace;
}

}  // namespace dsv32::harness
