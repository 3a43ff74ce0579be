#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "harness/cases/case_run.h"
#include "harness/report/report.h"
#include "src/model/implementation.h"

namespace dsv32::harness {

/// One training suite on one of its cases.
struct TrainingTask {
  std::string suite;
  Case the_case;
};

/// One job as the command line describes it.
struct Job {
  std::vector<Case> cases;  // of the suites forward and backward
  std::vector<std::string> suites = {"forward", "backward"};
  std::vector<TrainingTask> training = {};
  std::string filter;  // -k: substring of check_path (verdict.h); empty: all
  std::vector<std::filesystem::path> candidates;
  std::string dialect = "spec-1";  // what the candidate declares
  std::vector<DType> dtypes = {DType::float32, DType::bfloat16};
  std::vector<std::string> impls = {"reference", "optimized"};  // judged side by side
  std::string device = "cpu";
  std::string weights = "synthetic";  // or synthetic:SEED, or a directory
  std::optional<std::filesystem::path> batch_file;
  std::optional<uint64_t> seed;
  std::string command;  // for the repro line
  std::function<void(const std::string&)> progress = {};
  std::function<bool()> interrupted = {};  // polled between stages
};

/// Runs a job and returns its report. Errors of one candidate become findings of the report where
/// DESIGN says so; wrong input throws Error.
Report run_job(const Job& job);

/// Judges one trace in process: what run_job does with a candidate, for tests and calibration.
/// `plant` may change the dialect of the judged reference; see suites/cases/mutants.cpp.
std::vector<Verdict> judge_trace(const Case& c, const Trace& judged, DType dtype, bool is_file,
                                 bool backward, const Dialect& dialect);

/// A trace in the exchange format, for `dump`.
Trace make_trace(const Case& c, const std::string& impl, DType dtype, const std::string& mode,
                 const Dialect& dialect, const RunSettings& settings);

/// `compare A B`: every tap of two traces, relative and worst, first difference. Exit code 0 when
/// all equal within the limits of their dtype, else 1.
Report compare_traces(const std::filesystem::path& a, const std::filesystem::path& b);

}  // namespace dsv32::harness
