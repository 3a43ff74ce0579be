#include "harness/job/run_job.h"

#include <algorithm>
#include <chrono>

#include "harness/cases/candidate.h"
#include "harness/cases/case_run.h"
#include "harness/cases/generated.h"
#include "harness/cases/implementations.h"
#include "harness/job/estimate.h"
#include "harness/job/generate_part.h"
#include "harness/job/model_part.h"
#include "harness/job/plan.h"
#include "harness/job/provenance.h"
#include "harness/job/streaming.h"
#include "harness/job/training_part.h"
#include "harness/job/weights.h"
#include "harness/training/train_candidate.h"
#include "src/bridge/runtime.h"
#include "src/io/io.h"
#include "src/io/trace/generated.h"

namespace dsv32::harness {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool has_gradients(const Candidate& candidate) {
  const auto is_gradient = [](const std::string& name) { return name.starts_with("grad."); };
  const std::vector<std::string>& names = candidate.trace.names();
  const auto& sketches = candidate.trace.sketches;
  return std::any_of(names.begin(), names.end(), is_gradient) ||
         std::any_of(sketches.begin(), sketches.end(),
                     [&](const auto& entry) { return is_gradient(entry.first); });
}

/// The job, without the backward passes that none of the candidates has a gradient to show for.
Job without_idle_passes(Job job, const PlannedCase& planned) {
  const auto asked = [&](const char* suite) {
    return std::find(job.suites.begin(), job.suites.end(), suite) != job.suites.end();
  };
  const auto& candidates = planned.candidates;
  const bool idle = !candidates.empty() && planned.objective.kl == KlStage::none &&
                    std::none_of(candidates.begin(), candidates.end(),
                                 [](const Candidate* c) { return has_gradients(*c); });
  if (idle && asked("forward")) std::erase(job.suites, "backward");
  return job;
}

/// Judging golden and own models too takes no time worth saving.
bool is_quick(const Case& c) {
  constexpr double kQuickFlops = 2e10;
  return work_of(c).flops < kQuickFlops;
}

void run_model(const Job& whole, const PlannedCase& planned, Report& report) {
  const Job job = without_idle_passes(whole, planned);
  CaseJob case_job(job, planned.the_case, planned.objective, report);
  case_job.score_oracle();
  if (is_streamed(job, planned.the_case)) {
    case_job.run_layers();
  } else if (planned.candidates.empty() || job.all || is_quick(planned.the_case)) {
    case_job.run_golden_and_own();
  } else {
    case_job.recall_golden_and_own();
  }
  for (const Candidate* candidate : planned.candidates) case_job.run_candidate(*candidate);
  case_job.settle();
}

void run_case(const Job& job, const PlannedCase& planned, Report& report) {
  const Case& c = planned.the_case;
  const auto start = Clock::now();
  report.cases.push_back(c.name);
  const auto& warnings = c.config.warnings;
  report.warnings.insert(report.warnings.end(), warnings.begin(), warnings.end());
  if (planned.model) run_model(job, planned, report);
  for (const std::string& suite : planned.training) run_training_suite(job, c, suite, report);
  for (const Candidate* candidate : planned.trained) run_train_candidate(job, *candidate, report);
  if (!planned.generated.empty()) run_generate_candidates(job, planned.generated, report);
  report.costs.push_back({.case_name = c.name, .seconds = seconds_since(start)});
}

}  // namespace

Report run_job(const Job& job) {
  const auto start = Clock::now();
  Report report{.suites = job.suites};
  tell_environment(job.device, report);
  for (const auto& [op, when] : unpromised_bits(job.impls))
    report.environment["other bits on another run: " + op] = when;
  const std::vector<Candidate> candidates = read_candidates(job.candidates);
  for (const PlannedCase& planned : plan(job, candidates)) run_case(job, planned, report);
  if (report.verdicts.empty() && !job.filter.empty())
    report.warnings.push_back("-k " + job.filter +
                              " fits no check; a check is named CASE/SUBJECT/TAP, as "
                              "tiny/golden/layers.0.ix.q");
  report.seconds = seconds_since(start);
  return report;
}

/// Throws Error (usage).
static void expect_fp8(const WeightSource& weights, const std::string& mode) {
  if (mode != "forward" && mode != io::kGenerate)
    throw Error(ExitCode::usage, {.where = "--dtype fp8",
                                  .what = "mode",
                                  .expected = "forward: nothing trains in FP8",
                                  .got = mode});
  if (!weights.fp8())
    throw Error(ExitCode::usage, {.where = "--dtype fp8",
                                  .what = "weights",
                                  .expected = "FP8 ones",
                                  .got = weights.identity(),
                                  .hint = "--weights synthetic-fp8, or an FP8 checkpoint"});
}

Trace make_trace(const Case& c, const std::string& impl, DType dtype, const std::string& mode,
                 const Dialect& dialect, const RunSettings& settings, const std::string& weights,
                 bool slopes) {
  refuse_what_does_not_fit(c, estimate_of_dump(c, dtype, mode).bytes);
  const bool training = mode == "train";
  const Objective objective = objective_of_mode(mode);
  const bool backward = mode == "backward" || objective.kl != KlStage::none;
  const std::unique_ptr<const WeightSource> source = open_weights(weights, c);
  if (dtype == DType::fp8) expect_fp8(*source, mode);
  const CaseRun run(c, make_batch(c), *source, backward, settings, objective);
  const std::string model = impl == "oracle" ? "reference" : impl;
  const RunOptions options{.dtype = stored_type(dtype),
                           .dialect = impl == "oracle" ? dialect : in_dtype(dialect, dtype),
                           .backward = backward && run.backward(),
                           .slopes = slopes};
  Trace trace;
  if (training) {
    trace = make_train_trace(c, impl, dtype, dialect, settings);
  } else if (mode == io::kGenerate) {
    trace = GenerateRun(c, make_batch(c), *source, settings).decode(model, options);
    trace.metadata["decoding"] = io::decoding_json(c.decoding);
  } else {
    trace = run.run(options, impl, model);
  }
  trace.metadata.merge(std::map<std::string, std::string>{
      {"format", "dsv32-verify.trace"},
      {"version", "1"},
      {"case", io::case_metadata(c)},
      {"mode", mode},
      {"dtype", std::string(to_string(dtype))},
      {"rope_layout", "interleaved"},
      {"producer", "{\"dialect\":\"" + dialect.name + "\",\"implementation\":\"" + impl +
                       "\",\"torch\":\"" + torch_version() + "\"}"},
      {"weights", run.weights().identity()},
      {"forced", "false"},
      {"attn_implementation", impl},
      {"mask", c.mask_given ? "given" : "none"}});
  return trace;
}

}  // namespace dsv32::harness
