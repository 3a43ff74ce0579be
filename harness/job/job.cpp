#include "harness/job/job.h"

#include <chrono>

#include "harness/cases/candidate.h"
#include "harness/cases/case_run.h"
#include "harness/cases/implementations.h"
#include "harness/job/cost.h"
#include "harness/job/model_part.h"
#include "harness/job/plan.h"
#include "harness/job/training_part.h"
#include "harness/training/train_candidate.h"
#include "src/io/io.h"
#include "src/reference/reference.h"

namespace dsv32::harness {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void run_model(const Job& job, const PlannedCase& planned, Report& report) {
  CaseJob case_job(job, planned.the_case, planned.objective, report);
  case_job.run_golden_and_own();
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
  report.timing[c.name] = seconds_since(start);
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
  for (const auto& [op, when] : unpromised_bits(job.impls))
    report.environment["other bits on another run: " + op] = when;
  const std::vector<Candidate> candidates = read_candidates(job.candidates);
  for (const PlannedCase& planned : plan(job, candidates)) run_case(job, planned, report);
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
                 const Dialect& dialect, const RunSettings& settings) {
  refuse_what_does_not_fit(c, cost_of_dump(c, dtype, mode).bytes);
  const bool training = mode == "train";
  const Objective objective = objective_of_mode(mode);
  const bool backward = mode == "backward" || objective.kl != KlStage::none;
  const CaseRun run(c, backward, settings, objective);
  Trace trace =
      training
          ? make_train_trace(c, impl, dtype, dialect, settings)
          : run.run({.dtype = dtype, .dialect = dialect, .backward = backward && run.backward()},
                    impl, impl == "oracle" ? "reference" : impl);
  trace.metadata.merge(std::map<std::string, std::string>{
      {"format", "dsv32-verify.trace"},
      {"version", "1"},
      {"case", metadata_case(c)},
      {"mode", mode},
      {"dtype", std::string(to_string(dtype))},
      {"rope_layout", "interleaved"},
      {"producer", "{\"dialect\":\"" + dialect.name + "\",\"implementation\":\"" + impl +
                       "\",\"torch\":\"" + reference::torch_version() + "\"}"},
      {"weights", run.weights().identity()},
      {"forced", "false"},
      {"attn_implementation", impl},
      {"mask", c.mask_given ? "given" : "none"}});
  return trace;
}

}  // namespace dsv32::harness
