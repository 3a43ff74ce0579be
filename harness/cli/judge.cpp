#include <algorithm>
#include <iostream>

#include "harness/cli/commands.h"
#include "harness/cli/progress.h"
#include "harness/cli/stop.h"
#include "harness/job/compare_traces.h"
#include "harness/job/job_estimate.h"
#include "harness/job/run_job.h"
#include "harness/job/streaming.h"
#include "harness/job/witnesses.h"
#include "harness/report/text.h"
#include "src/bridge/runtime.h"
#include "src/log/log.h"
#include "src/training/rank_env.h"

namespace dsv32::harness {
namespace {

Job make_job(const Options& options) {
  Job job;
  job.suites = chosen_suites(options);
  const auto asked = [&](const char* suite) {
    return std::find(job.suites.begin(), job.suites.end(), suite) != job.suites.end();
  };
  if (asked("forward") || asked("backward") || !options.candidates.empty())
    job.cases = chosen_cases(options);
  job.training = chosen_training(options);
  job.filter = options.filter;
  job.candidates.assign(options.candidates.begin(), options.candidates.end());
  job.dialect = options.dialect.value_or(job.dialect);
  job.accept_weak = options.accept_weak;
  job.all = options.all;
  if (!options.no_cache) job.cache = cache_folder();
  if (options.noise) job.noise = *options.noise;
  if (!options.dtypes.empty()) job.dtypes = options.dtypes;
  if (!options.impls.empty()) {
    job.impls = options.impls;
  } else if (!options.candidates.empty()) {
    job.impls = {"reference"};  // what a candidate is judged against
  }
  job.device = resolve_device(options.device);
  job.weights = options.weights;
  job.layers = options.layers;
  job.folder = options.out.value_or("");
  job.resume = options.resume;
  job.command = options.repro;
  if (options.batch) job.batch_file = *options.batch;
  // The seed that a case has anyway is no change: its golden stays in play.
  const auto changes = [&](const Case& c) { return options.seed && c.seed != *options.seed; };
  if (std::any_of(job.cases.begin(), job.cases.end(), changes)) job.seed = options.seed;
  return job;
}

/// Runs while the user may still stop it. Whatever a stopped run ends with, the stop is its reason.
Report run_stoppable(Job job, const Options& options) {
  Progress progress(progress_style(options.quiet));
  Stop stop(options.timeout, [&] { progress.finish(); });
  job.interrupted = [&] { return stop.asked(); };
  job.progress = [&](const std::string& text) {
    stop.check();
    progress.update(text);
  };
  try {
    Report report = run_job(job);
    stop.disarm();
    stop.check();
    return report;
  } catch (...) {
    stop.check();
    throw;
  }
}

/// In a world of ranks only the suite `sharded` has work for all of them, and rank 0 reports.
bool is_silent_rank(const Job& job) {
  const auto& suites = job.suites;
  if (std::find(suites.begin(), suites.end(), "sharded") == suites.end()) return false;
  const auto env = training::read_rank_environment();
  if (!env || env->world_size == 1) return false;
  if (suites.size() > 1) {
    throw Error(ExitCode::usage,
                {.where = "rank " + std::to_string(env->rank),
                 .what = "a world of " + std::to_string(env->world_size) + " ranks",
                 .expected = "--suite sharded",
                 .got = std::to_string(suites.size()) + " suites",
                 .hint = "run the other suites without a launcher"});
  }
  return env->rank > 0;
}

/// The ends of the model have no gradient stream to go back from, and fp8 mode trains nothing.
void check_backward_layers(const Options& options, const Job& job) {
  const auto refuse = [](const std::string& what, const std::string& expected,
                         const std::string& got) {
    throw Error(ExitCode::usage,
                {.where = "--suite backward", .what = what, .expected = expected, .got = got});
  };
  if (options.layers.empty())
    refuse("a model that is judged layer by layer", "--layers N,.. with the layers that go back",
           "no --layers");
  for (const Case& c : job.cases) {
    const LayerSelection selection = parse_layers(options.layers, c.config);
    if (selection.embed || selection.head)
      refuse("--layers", "layers alone, as in 3: embed and head go back in whole models only",
             selection.embed ? "embed" : "head");
  }
  if (job.dtypes == std::vector<DType>{DType::fp8})
    refuse("--dtype", "float32 or bfloat16: nothing trains in fp8 mode", "fp8");
}

/// Layers are judged by themselves, and of our own implementations.
void check_layers(const Options& options, const Job& job) {
  const bool streamed = std::any_of(job.cases.begin(), job.cases.end(),
                                    [&](const Case& c) { return is_streamed(job, c); });
  if (options.resume && !(streamed && options.out)) {
    throw Error(ExitCode::usage, {.where = "--resume",
                                  .what = "nothing leaves a journal",
                                  .expected = "--out and --layers, or a case that is streamed",
                                  .got = streamed ? "no --out" : "a job that is held whole"});
  }
  if (options.layers.empty() && !streamed) return;
  const auto refuse = [](const std::string& what, const std::string& got) {
    throw Error(ExitCode::usage,
                {.where = "--layers",
                 .what = what,
                 .expected = "our own implementations, --suite forward or backward",
                 .got = got});
  };
  if (!options.layers.empty() && !options.candidates.empty())
    refuse("a candidate brings its own layers", "--candidate");
  for (const std::string& suite : options.suites)
    if (suite != "forward" && suite != "backward")
      refuse("not in this version", "--suite " + suite);
  const auto& asked = options.suites;
  if (std::find(asked.begin(), asked.end(), "backward") != asked.end())
    check_backward_layers(options, job);
}

}  // namespace

ExitCode judge_command(const Options& options) {
  Job job = make_job(options);
  check_layers(options, job);
  if (is_silent_rank(job)) return run_stoppable(std::move(job), options).exit_code();
  if (options.dry_run) {
    std::cout << dry_run_text(job);
    return ExitCode::ok;
  }
  probe_outputs(options);
  if (options.dialect && options.candidates.empty()) {
    log_warning("--dialect says what a candidate declares; without --candidate it changes nothing");
  }
  for (const Case& c : job.cases) say_shape(c);
  announce(estimate_of(job), job.device);
  return deliver(run_stoppable(std::move(job), options), options);
}

Report judge_candidates(const Options& options) {
  Job job = make_job(options);
  announce(estimate_of(job), job.device);
  return run_stoppable(std::move(job), options);
}

ExitCode compare_command(const Options& options) {
  probe_outputs(options);
  Options described = options;
  described.repro = "dsv32-verify compare";
  for (const std::string& path : options.arguments) described.repro += " " + shell_word(path);
  if (options.batch) described.repro += " --batch " + shell_word(*options.batch);
  return deliver(compare_traces(options.arguments[0], options.arguments[1], options.batch),
                 described);
}

}  // namespace dsv32::harness
