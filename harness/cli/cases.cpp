#include <algorithm>

#include "harness/cases/candidate.h"
#include "harness/cli/commands.h"
#include "harness/cli/names.h"
#include "harness/job/estimate.h"
#include "harness/training/suite.h"
#include "src/io/io.h"
#include "src/log/log.h"

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
                                   .hint = "golden/dump writes trace files"});
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
    const Case asked = io::case_of_words(*options.case_name);
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

/// The user, and not the file alone, says how large the model is.
bool is_vouched_for(const Case& c, const Options& options) {
  if (options.case_name) return true;
  return options.config &&
         io::config_json(c.config) == io::config_json(io::read_config(*options.config));
}

std::vector<Case> cases_of_candidates(const Options& options) {
  std::vector<Case> cases;
  for (const auto& file : candidate_files({options.candidates.begin(), options.candidates.end()})) {
    const std::string path = file.string();
    const Case c = case_of_candidate(path);
    check_candidate(c, path, options);
    if (!is_vouched_for(c, options)) refuse_large_work(c, path);
    const auto same = [&](const Case& other) { return io::case_json(other) == io::case_json(c); };
    if (std::none_of(cases.begin(), cases.end(), same)) cases.push_back(c);
  }
  return cases;
}

constexpr char kAllSuites[] = "all";

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// The training suite was asked for by its name.
bool named(const Options& options, const TrainingSuite& suite) {
  return contains(options.suites, suite.name);
}

[[noreturn]] void no_such_case(const TrainingSuite& suite, const std::string& option) {
  throw Error(ExitCode::usage,
              {.where = "--suite " + suite.name,
               .what = "has no case in " + option,
               .expected = "a case of " + alternatives(suite.cases),
               .got = option,
               .hint = "--suite " + suite.name + " --case " + suite.cases.front()});
}

/// The suite's cases that the options allow, by name.
std::vector<Case> cases_of_suite(const TrainingSuite& suite, const Options& options) {
  std::vector<Case> cases;
  for (const std::string& name : suite.cases) {
    const Case& c = io::find_case(name);
    const bool wanted = options.case_name ? name == *options.case_name
                                          : c.config_name == options.config.value_or("tiny");
    if (wanted) cases.push_back(c);
  }
  if (!cases.empty() || !named(options, suite)) return cases;
  no_such_case(suite, options.case_name ? "--case " + *options.case_name
                                        : "--config " + options.config.value_or("tiny"));
}

}  // namespace

std::vector<std::string> chosen_suites(const Options& options) {
  const bool everything = contains(options.suites, kAllSuites);
  if (!options.suites.empty() && !everything) return options.suites;
  if (!options.layers.empty()) return {"forward"};
  std::vector<std::string> chosen = {"forward", "backward"};
  const bool main_job = options.config == "small" && options.suites.empty() && !options.case_name;
  const bool own_input = options.seed || options.batch || options.weights != "synthetic";
  if (!options.candidates.empty() || !(everything || (main_job && !own_input))) return chosen;
  for (const TrainingSuite& suite : training_suites()) chosen.push_back(suite.name);
  return chosen;
}

std::vector<TrainingTask> chosen_training(const Options& options) {
  std::vector<TrainingTask> tasks;
  if (!options.candidates.empty()) return tasks;
  const std::vector<std::string> chosen = chosen_suites(options);
  for (const TrainingSuite& suite : training_suites()) {
    if (!contains(chosen, suite.name)) continue;
    const std::vector<Case> cases = cases_of_suite(suite, options);
    if (cases.empty())
      log_info("suite " + suite.name + " is left out: its cases are " + alternatives(suite.cases));
    for (const Case& c : cases) tasks.push_back({suite.name, c});
  }
  return tasks;
}

std::vector<Case> chosen_cases(const Options& options) {
  if (!options.candidates.empty()) return cases_of_candidates(options);
  if (options.case_name) return {io::case_of_words(*options.case_name)};
  return io::cases_of_config(options.config.value_or("tiny"));
}

}  // namespace dsv32::harness
