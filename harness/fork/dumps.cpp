#include <algorithm>
#include <cstdio>
#include <utility>

#include "harness/fork/fork.h"
#include "harness/launch/program.h"
#include "src/io/print.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

constexpr double kImportSeconds = 300;
constexpr double kSlack = 30;  // for the process itself, per dump
constexpr size_t kOutputLines = 20;
constexpr int kLastOwnCode = static_cast<int>(ExitCode::environment);

std::string name_of(const io::DumpJob& job) {
  return job.case_name + " " + (job.suite.empty() ? job.mode : job.suite);
}

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", seconds);
  return text;
}

/// Follows one process of golden/dump by its lines.
class Dumps {
 public:
  Dumps(const Fork& fork, const std::vector<io::DumpJob>& jobs, const ForkWatch& watch)
      : fork_(fork), jobs_(jobs), watch_(watch) {}

  ForkDumps run() {
    const fs::path file = jobs_.front().out.parent_path() / "jobs.json";
    io::write_file(file, io::dump_jobs_json(jobs_, kImportSeconds, fork_.tree.has_value()));
    double seconds = kImportSeconds + kSlack;
    for (const io::DumpJob& job : jobs_) {
      fs::remove(job.out);
      seconds += job.seconds + kSlack;
    }
    watch_.progress("importing the fork");
    end_ = run_program(
        {.command = command(file),
         .variables = variables(),
         .seconds = seconds,
         .interrupted = watch_.interrupted,
         .on_line = [&](bool is_error, const std::string& line) { take(is_error, line); }});
    if (!(watch_.interrupted && watch_.interrupted())) conclude();
    return std::move(out_);
  }

 private:
  std::vector<std::string> command(const fs::path& file) const {
    std::vector<std::string> words = {fork_.python, (io::home() / "golden" / "dump").string(),
                                      "--jobs", file.string()};
    if (fork_.tree) words.insert(words.end(), {"--transformers", fork_.tree->string()});
    words.insert(words.end(), fork_.words.begin(), fork_.words.end());
    return words;
  }

  static std::map<std::string, std::string> variables() {
    return {
        {"HF_HUB_OFFLINE", "1"},
        {"TOKENIZERS_PARALLELISM", "false"},
        {"PYTORCH_NVML_BASED_CUDA_CHECK", "1"}};  // asking for a device must not begin to use it
  }

  void take(bool is_error, const std::string& line) {
    const auto event = is_error ? std::nullopt : io::parse_dump_event(line);
    if (!event) {
      output_.push_back(line);
      if (output_.size() > kOutputLines) output_.erase(output_.begin());
    } else if (event->event == "imported") {
      out_.imported = *event;
    } else if (event->event == "modular") {
      out_.modular = *event;
    } else if (event->job < jobs_.size()) {
      on_job(*event, jobs_[event->job]);
    }
  }

  void on_job(const io::DumpEvent& event, const io::DumpJob& job) {
    const std::string count =
        std::to_string(event.job + 1) + "/" + std::to_string(jobs_.size()) + " ";
    if (event.event == "start") return watch_.progress("dump " + count + name_of(job));
    ended_.push_back(job.out);
    const bool failed = !event.message.empty() || event.code != 0;
    const bool repeated = failed && is_repeated(event);
    const std::string what = repeated ? "as before" : io::printable(event.message, kShown);
    watch_.done(count + name_of(job) + ": " + seconds_text(event.seconds) +
                (failed ? ", failed: " + what : ""));
    if (failed) note_failure(job, event);
    if (repeated)
      ++repeated_;
    else if (fs::exists(job.out))
      out_.traces.push_back(job.out);
  }

  void note_failure(const io::DumpJob& job, const io::DumpEvent& event) {
    out_.failed.push_back({.job = job,
                           .message = event.message,
                           .output = event.output,
                           .refused = !fs::exists(job.out)});
  }

  /// What stops one dump before any case matters stops each of them: it is judged once.
  bool is_repeated(const io::DumpEvent& event) {
    if (event.phase != "import" && event.phase != "load") return false;
    return std::exchange(first_failure_, event.message) == event.message;
  }

  /// The process has ended: what it did not come to, and why.
  void conclude() {
    const bool own = end_.code > 1 && end_.code <= kLastOwnCode && ended_.empty();
    if (own) refuse();
    for (const io::DumpJob& job : jobs_)
      if (std::find(ended_.begin(), ended_.end(), job.out) == ended_.end()) lose(job);
    if (repeated_ > 0)
      out_.not_tested.push_back(std::to_string(repeated_) +
                                " further dumps: they fail as the first one does, before any case "
                                "matters");
  }

  [[noreturn]] void refuse() const {
    std::string last = output_.empty() ? "no message" : output_.back();
    constexpr std::string_view kName = "dump: ";
    if (last.starts_with(kName)) last.erase(0, kName.size());
    const auto code = static_cast<ExitCode>(end_.code);
    throw Error(code == ExitCode::usage ? ExitCode::internal : code,
                {.where = "golden/dump", .what = io::printable(last, kShown)});
  }

  /// The process died with this dump, or before it.
  void lose(const io::DumpJob& job) {
    const bool importing = out_.imported.event.empty();
    const std::string phase = importing ? "import" : "run";
    std::string message = "the process " + end_.fate + (end_.late ? ", after its time limit" : "");
    if (!output_.empty()) message += "; it last said: " + output_.back();
    const io::DumpEvent event{.event = "end",
                              .code = 1,
                              .phase = importing ? "import" : "load",
                              .message = message,
                              .output = output_};
    io::write_failure_trace(job, phase, message);
    note_failure(job, event);
    if (is_repeated(event))
      ++repeated_;
    else
      out_.traces.push_back(job.out);
  }

  static constexpr size_t kShown = 600;  // bytes of a message

  const Fork& fork_;
  const std::vector<io::DumpJob>& jobs_;
  const ForkWatch& watch_;
  ForkDumps out_;
  ProgramEnd end_;
  std::vector<std::string> output_;  // its last lines that are no events
  std::vector<fs::path> ended_;
  std::optional<std::string> first_failure_;
  size_t repeated_ = 0;
};

}  // namespace

ForkDumps dump_fork(const Fork& fork, const std::vector<io::DumpJob>& jobs,
                    const ForkWatch& watch) {
  return Dumps(fork, jobs, watch).run();
}

}  // namespace dsv32::harness
