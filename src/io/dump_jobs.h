#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "src/io/io.h"

/// What is said to `golden/dump --jobs` and what it says, docs/formats.md 4.
namespace dsv32::io {

/// One run of an implementation, to one trace file.
struct DumpJob {
  std::string case_name;
  fs::path checkpoint;
  std::string mode;   // "forward", "backward", "kl-warmup", "kl-sparse", "train", "generate"
  std::string suite;  // of mode train
  fs::path out;
  bool sketch = false;  // chosen rows, norms and projections in place of whole taps
  double seconds = 0;   // limits; memory beyond that of the imports
  double gib = 0;
};

/// The file of `--jobs`. `modular`: the generated files of the source tree are checked as well.
std::string dump_jobs_json(const std::vector<DumpJob>& jobs, double import_seconds, bool modular);

/// One line of progress.
struct DumpEvent {
  std::string event;  // "imported", "modular", "start", "end"
  size_t job = 0;     // of start and end
  int code = 0;       // of end: golden/dump's exit code
  double seconds = 0;
  std::string phase, message;       // of a failure
  std::vector<std::string> output;  // its last lines
  std::string state, file, note;    // of modular
  std::string version, path;        // of imported
};
/// nullopt for a line that is none: an implementation may print what it likes.
std::optional<DumpEvent> parse_dump_event(const std::string& line);

/// The trace of an implementation that could not leave one: no tap, a `failure`.
void write_failure_trace(const DumpJob& job, const std::string& where, const std::string& message);

}  // namespace dsv32::io
