#include <algorithm>

#include "harness/cli_commands.h"
#include "src/io/io.h"

namespace dsv32::harness {
namespace {

/// The case that a trace file names; only its header is read. The whole file is checked by the run.
Case case_of_candidate(const std::string& path) {
  Trace header;
  header.metadata = io::SafetensorsFile(path).metadata();
  if (header.metadata.contains("case")) return io::case_of_trace(header);
  throw Error(ExitCode::artefact, {.where = path,
                                   .what = "metadata \"case\"",
                                   .expected = "a case name or a case as JSON",
                                   .got = "none",
                                   .hint = "golden/dump.py writes trace files"});
}

[[noreturn]] void contradiction(const std::string& path, const std::string& option,
                                const std::string& asked, const std::string& got) {
  throw Error(ExitCode::artefact, {.where = path,
                                   .what = "contradicts " + option,
                                   .expected = asked,
                                   .got = got,
                                   .hint = "a candidate is judged in its own case: leave " +
                                           option + " out, or dump the candidate again"});
}

bool is_of_config(const Case& c, const std::string& config) {
  const std::vector<std::string> known = io::config_names();
  if (std::find(known.begin(), known.end(), config) != known.end()) return c.config_name == config;
  return io::config_json(c.config) == io::config_json(io::read_config(config));
}

void check_candidate(const Case& c, const std::string& path, const Options& options) {
  if (options.case_name) {
    const Case& asked = io::find_case(*options.case_name);
    if (io::case_json(asked) != io::case_json(c)) {
      contradiction(path, "--case", "case " + asked.name, "case " + c.name);
    }
  }
  if (options.config && !is_of_config(c, *options.config)) {
    contradiction(path, "--config", "a case of config " + *options.config,
                  "case " + c.name + " of config " + c.config_name);
  }
  if (options.seed && *options.seed != c.seed) {
    contradiction(path, "--seed", "seed " + std::to_string(*options.seed),
                  "seed " + std::to_string(c.seed));
  }
}

std::vector<Case> cases_of_candidates(const Options& options) {
  std::vector<Case> cases;
  for (const std::string& path : options.candidates) {
    const Case c = case_of_candidate(path);
    check_candidate(c, path, options);
    const auto same = [&](const Case& other) { return io::case_json(other) == io::case_json(c); };
    if (std::none_of(cases.begin(), cases.end(), same)) cases.push_back(c);
  }
  return cases;
}

}  // namespace

std::vector<Case> chosen_cases(const Options& options) {
  if (!options.candidates.empty()) return cases_of_candidates(options);
  if (options.case_name) return {io::find_case(*options.case_name)};
  return io::cases_of_config(options.config.value_or("tiny"));
}

}  // namespace dsv32::harness
