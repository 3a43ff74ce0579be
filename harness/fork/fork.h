#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "harness/report/report.h"
#include "src/io/dump_jobs.h"

/// From a fork's checkout to trace files and what else there is to say of it. The fork's own code
/// runs in its own Python, in one process that imports it once (golden/dump --jobs).
namespace dsv32::harness {

/// Whose code runs, and how it is loaded.
struct Fork {
  std::optional<std::filesystem::path> tree;  // a source tree; nullopt: what Python has installed
  std::string python;
  std::vector<std::string> words;  // further options of golden/dump: "--class", "NAME", ...
};

/// What is asked of it.
struct ForkPlan {
  std::vector<std::string> cases;  // empty: the default set
  bool full_set = false;
  std::string dialect = "spec-1";      // what it declares to be
  std::string filter;                  // -k: dumps that no check of it can name are left out
  std::optional<double> seconds, gib;  // limits of one dump
};

/// The dumps of a plan; files go to `folder`/traces, checkpoints to `checkpoints`.
std::vector<io::DumpJob> plan_dumps(const ForkPlan& plan, const std::filesystem::path& folder,
                                    const std::filesystem::path& checkpoints);
/// The cases that a full set would have and leaves out, with the reason: a line each.
std::vector<std::string> left_out(const ForkPlan& plan);
/// The checkpoints that the jobs want and that are not there yet. Throws Error.
void make_checkpoints(const std::vector<io::DumpJob>& jobs,
                      const std::function<void(const std::string&)>& progress);

/// The interpreter that is asked for, else the first python3 or python of PATH that has what the
/// fork needs: torch, numpy, safetensors, and transformers where no source tree brings it. Throws
/// Error (usage, environment) that says what each interpreter lacks.
std::string find_python(const std::optional<std::string>& asked, bool has_tree);

/// A dump that left no whole trace.
struct FailedDump {
  io::DumpJob job;
  std::string message;
  std::vector<std::string> output;  // what it printed last
  bool refused = false;             // nothing ran: golden/dump cannot ask this fork for that
};

struct ForkDumps {
  std::vector<std::filesystem::path> traces;  // to be judged
  std::vector<FailedDump> failed;
  std::vector<std::string> not_tested;
  io::DumpEvent imported, modular;
};

struct ForkWatch {
  std::function<void(const std::string&)> progress;  // what is being done
  std::function<void(const std::string&)> done;      // one line about each dump
  std::function<bool()> interrupted;
};

/// Runs all dumps. A fork that cannot be imported, hangs or dies leaves traces that say so. Throws
/// Error (environment) when it lacks a package, (internal) when golden/dump itself fails.
ForkDumps dump_fork(const Fork& fork, const std::vector<io::DumpJob>& jobs, const ForkWatch& watch);

/// Puts before the judged taps what is known besides them: generated files edited by hand, dumps
/// that could not be asked for, and what was not tested.
void add_findings(const Fork& fork, const ForkDumps& dumps, Report& report);

}  // namespace dsv32::harness
