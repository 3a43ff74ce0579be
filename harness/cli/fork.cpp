#include "harness/fork/fork.h"

#include <commit.h>

#include <algorithm>
#include <chrono>
#include <iostream>

#include "harness/cli/commands.h"
#include "harness/cli/progress.h"
#include "harness/cli/stop.h"
#include "harness/report/diff.h"
#include "harness/report/text.h"
#include "src/io/io.h"
#include "src/log/log.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The words of golden/dump that say how the fork is loaded and run.
std::vector<std::string> words_of_dump(const ForkOptions& o) {
  std::vector<std::string> words;
  const auto add = [&](const char* name, const std::optional<std::string>& value) {
    if (value) words.insert(words.end(), {name, *value});
  };
  add("--class", o.cls);
  add("--device-map", o.device_map);
  add("--attn", o.attn);
  add("--experts", o.experts);
  for (const std::string& field : o.overrides) add("--config-override", field);
  if (o.trust_remote_code) words.push_back("--trust-remote-code");
  return words;
}

std::optional<fs::path> tree_of(const std::optional<std::string>& path) {
  if (!path) return std::nullopt;
  if (fs::is_directory(*path)) return fs::absolute(*path).lexically_normal();
  throw Error(ExitCode::usage, {.where = "fork",
                                .what = "source tree",
                                .expected = "a folder that holds transformers",
                                .got = *path,
                                .hint = "leave it out to judge the installed transformers"});
}

/// Several dumps of a case leave out the same things.
void keep_first(std::vector<std::string>& lines) {
  std::vector<std::string> kept;
  for (std::string& line : lines)
    if (std::find(kept.begin(), kept.end(), line) == kept.end()) kept.push_back(std::move(line));
  lines = std::move(kept);
}

/// What a failed dump printed last, where people see it.
void show_output(const FailedDump& failed) {
  const std::string name = failed.job.out.filename().string();
  log_warning(name + ": " + printable(failed.message));
  for (const std::string& line : failed.output) log_warning(name + " | " + printable(line));
}

/// Dumps and judges one tree after another, in one time limit.
class ForkRun {
 public:
  explicit ForkRun(const Options& options)
      : options_(options), start_(Clock::now()), out_(*options.out) {}

  ExitCode run() {
    const ForkOptions& o = options_.fork;
    const auto head = tree_of(o.path), base = tree_of(o.base);
    const bool from_trees = head.has_value() && (!o.base || base.has_value());
    const std::string python = find_python(o.python, from_trees);
    const Fork fork{.tree = head, .python = python, .words = words_of_dump(o)};
    if (!base) return deliver(judged(fork, out_), delivered(fork));
    Fork before = fork;
    before.tree = base;
    const Report old = judged(before, out_ / "base", "base ");
    write_only(old, out_ / "base", repro_of(before, out_ / "base"));
    const Report report = judged(fork, out_, "head ");
    const ExitCode code = deliver(report, delivered(fork), &old);
    const ReportDiff diff = compare_reports(old, report);
    io::write_file(out_ / "changes.md", diff_markdown(diff));
    if (!options_.json) std::cout << diff_text(diff);
    if (o.fail_on != "new" || code != ExitCode::parity) return code;
    return diff.worse() ? code : ExitCode::ok;
  }

 private:
  /// `which`: of two trees, before what is said of its dumps.
  Report judged(const Fork& fork, const fs::path& folder, const std::string& which = "") {
    const ForkDumps dumps = dumped(fork, folder, which);
    std::vector<FailedDump> shown;
    for (const FailedDump& failed : dumps.failed) {
      const bool told = std::any_of(shown.begin(), shown.end(), [&](const FailedDump& other) {
        return other.message == failed.message;
      });
      if (!told) show_output(shown.emplace_back(failed));
    }
    Report report = dumps.traces.empty() ? Report{.suites = {"forward", "backward"}}
                                         : judge_candidates(judging(dumps));
    add_findings(fork, dumps, report);
    for (const std::string& line : left_out(plan())) report.not_tested.push_back(line);
    keep_first(report.not_tested);
    report.seconds = seconds_since(start_);
    return report;
  }

  ForkPlan plan() const {
    const ForkOptions& o = options_.fork;
    return {.cases = o.cases,
            .full_set = o.full_set,
            .dialect = options_.dialect.value_or("spec-1"),
            .filter = options_.filter,
            .seconds = o.job_seconds,
            .gib = o.job_gib};
  }

  ForkDumps dumped(const Fork& fork, const fs::path& folder, const std::string& which) {
    const std::vector<io::DumpJob> jobs = plan_dumps(plan(), folder, out_ / "checkpoints");
    if (jobs.empty())
      throw Error(ExitCode::usage, {.where = "-k " + options_.filter,
                                    .what = "names no dump",
                                    .expected = "a case and a candidate of this command",
                                    .got = "neither"});
    io::make_directory(folder / "traces");
    const Progress::Style style = progress_style(options_.quiet);
    Progress progress(style);
    Stop stop(left(), [&] { progress.finish(); });
    const auto step = [&](const std::string& text) {
      stop.check();
      progress.update(text);
    };
    make_checkpoints(jobs, step);
    const auto done = [&](const std::string& line) {
      if (style == Progress::Style::lines) log_info(which + line);
    };
    ForkDumps dumps =
        dump_fork(fork, jobs,
                  {.progress = [&](const std::string& text) { progress.update(which + text); },
                   .done = done,
                   .interrupted = [&] { return stop.asked(); }});
    stop.disarm();
    stop.check();
    return dumps;
  }

  /// What is left of `--timeout`.
  std::optional<double> left() const {
    constexpr double kLeast = 0.1;
    if (!options_.timeout) return std::nullopt;
    return std::max(kLeast, *options_.timeout - seconds_since(start_));
  }

  Options judging(const ForkDumps& dumps) const {
    Options judged = options_;
    judged.command = Command::judge;
    for (const fs::path& trace : dumps.traces) judged.candidates.push_back(trace.string());
    judged.timeout = left();
    return judged;
  }

  Options delivered(const Fork& fork) const {
    Options options = options_;
    options.repro = repro_of(fork, out_);
    return options;
  }

  /// The command that judges this tree again, with what was found out on the way.
  std::string repro_of(const Fork& fork, const fs::path& folder) const {
    std::string command = "dsv32-verify fork";
    if (fork.tree) command += " " + shell_word(fork.tree->string());
    command += " --python " + shell_word(fork.python);
    for (const std::string& name : options_.fork.cases) command += " --case " + shell_word(name);
    if (options_.fork.full_set) command += " --full-set";
    if (options_.dialect) command += " --dialect " + shell_word(*options_.dialect);
    if (options_.accept_weak) command += " --accept-weak";
    if (options_.fork.job_seconds)
      command += " --job-timeout " + number(*options_.fork.job_seconds);
    if (options_.fork.job_gib) command += " --job-memory " + number(*options_.fork.job_gib);
    for (const std::string& word : fork.words) command += " " + shell_word(word);
    return command + " --out " + shell_word(folder.string());
  }

  static void write_only(Report report, const fs::path& folder, const std::string& command) {
    report.tool_version = DSV32_VERSION;
    report.environment["commit"] = DSV32_COMMIT;
    report.command = command;
    write_report(report, folder);
  }

  const Options& options_;
  const Clock::time_point start_;
  const fs::path out_;
};

}  // namespace

ExitCode fork_command(const Options& options) {
  probe_outputs(options);
  return ForkRun(options).run();
}

}  // namespace dsv32::harness
