#include "harness/cli/names.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "harness/cases/implementations.h"
#include "src/io/io.h"
#include "src/model/dialect.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

const std::vector<std::string> kDevices = {"auto", "cpu", "cuda"};
const std::vector<std::string> kModes = {"forward",   "backward", "kl-warmup",
                                         "kl-sparse", "train",    "generate"};
const std::vector<std::string> kLaterSuites = {"ops"};  // known by name, so that asking is no typo

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

bool looks_like_path(const std::string& text) {
  return text.starts_with('{') || text.find('/') != std::string::npos || text.ends_with(".json") ||
         std::filesystem::exists(text);
}

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const Case& c : io::cases()) names.push_back(c.name);
  return names;
}

/// A path is opened later; a bare word must be a shipped config.
void check_config(const std::string& config) {
  const std::vector<std::string> known = io::config_names();
  if (contains(known, config) || looks_like_path(config)) return;
  if (contains(case_names(), config)) {
    throw Error(ExitCode::usage, {.where = "--config",
                                  .what = "unknown config",
                                  .expected = alternatives(known) + " or a path",
                                  .got = "\"" + config + "\"",
                                  .hint = "this is a case: --case " + config});
  }
  expect_one_of("--config", "config", config, known);
}

void check_suites(const std::vector<std::string>& asked) {
  std::vector<std::string> known;
  for (const SuiteInfo& suite : suites()) known.push_back(suite.name);
  known.push_back("all");
  for (const std::string& suite : asked) {
    if (contains(kLaterSuites, suite)) not_in_this_version("--suite " + suite);
    expect_one_of("--suite", "suite", suite, known);
  }
}

void check_impls(const Options& options) {
  std::vector<std::string> known = implementation_names();
  const bool dump = options.command == Command::dump;
  if (dump) known.insert(known.begin(), "oracle");
  for (const std::string& impl : options.impls)
    expect_one_of("--impl", "implementation", impl, known);
  if (!dump || options.impls.size() < 2) return;
  throw Error(ExitCode::usage, {.where = "--impl",
                                .what = "implementations of one trace",
                                .expected = "one",
                                .got = std::to_string(options.impls.size())});
}

void check_weights(const std::string& weights) {
  const std::string kind = weights.substr(0, weights.find(':'));
  if (kind == "synthetic" || kind == "synthetic-fp8") {
    if (kind != weights) parse_seed("--weights " + kind, weights.substr(kind.size() + 1));
  } else if (!std::filesystem::is_directory(weights)) {
    throw Error(ExitCode::artefact,
                {.where = "--weights",
                 .what = "source of the weights",
                 .expected = "synthetic, synthetic-fp8, either with :SEED, or a checkpoint folder",
                 .got = "\"" + weights + "\", which is no folder",
                 .hint = "dsv32-verify weights make makes one"});
  }
}

void check_dump(const Options& options) {
  expect_one_of("--mode", "mode", options.mode, kModes);
  const bool other_type =
      !options.dtypes.empty() && options.dtypes != std::vector<DType>{DType::float64};
  if (options.impls == std::vector<std::string>{"oracle"} && other_type) {
    throw Error(ExitCode::usage, {.where = "--dtype",
                                  .what = "the oracle has one dtype",
                                  .expected = "float64",
                                  .got = std::string(to_string(options.dtypes.front())),
                                  .hint = "--impl reference runs in any dtype"});
  }
}

/// A checkpoint is made for a case or for a config.
void check_weights_make(const Options& options) {
  if (options.dtypes == std::vector<DType>{DType::fp8})
    throw Error(ExitCode::usage, {.where = "--dtype",
                                  .what = "dtype of what is not FP8",
                                  .expected = "bfloat16 or float32",
                                  .got = "fp8",
                                  .hint = "--format fp8"});
  if (options.case_name.has_value() != options.config.has_value()) return;
  throw Error(ExitCode::usage, {.where = "weights make",
                                .what = "what the weights are for",
                                .expected = "--case NAME|JSON or --config NAME|PATH|JSON",
                                .got = options.config ? "both" : "neither"});
}

/// The second folder of `weights check` is the one that `--time` is about.
void check_weights_check(const Options& options) {
  if (options.time || options.arguments.size() < 2) return;
  throw Error(ExitCode::usage, {.where = "weights check",
                                .what = "folders",
                                .expected = "one folder, or --time with the folder of a copy",
                                .got = "two"});
}

void check_case_against_config(const Options& options) {
  if (!options.config || !options.case_name || !options.candidates.empty()) return;
  const Case c = io::case_of_words(*options.case_name);
  if (c.config_name == *options.config) return;
  throw Error(ExitCode::usage, {.where = "--case " + c.name,
                                .what = "not a case of --config " + *options.config,
                                .expected = "one of the two options, or --config " + c.config_name,
                                .got = "both",
                                .hint = "dsv32-verify list cases"});
}

}  // namespace

std::string alternatives(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    const bool last = i + 1 == words.size();
    text += (i == 0 ? "" : last ? " or " : ", ") + words[i];
  }
  return text;
}

void expect_one_of(const std::string& where, const std::string& what, const std::string& word,
                   const std::vector<std::string>& known) {
  if (contains(known, word)) return;
  const std::string near = nearest(word, known);
  throw Error(ExitCode::usage, {.where = where,
                                .what = "unknown " + what,
                                .expected = alternatives(known),
                                .got = "\"" + word + "\"",
                                .hint = near.empty() ? "" : "did you mean " + near + "?"});
}

void not_in_this_version(const std::string& name) {
  throw Error(ExitCode::usage, {.where = name, .what = "not in this version"});
}

uint64_t parse_seed(const std::string& where, const std::string& text) {
  uint64_t seed = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, seed);
  if (error == std::errc() && stop == end) return seed;
  throw Error(ExitCode::usage, {.where = where,
                                .what = "not a seed",
                                .expected = "a whole number from 0 to 2^64 - 1",
                                .got = "\"" + text + "\""});
}

int64_t parse_count(const std::string& where, const std::string& text, int64_t first,
                    int64_t last) {
  int64_t count = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, count);
  if (error == std::errc() && stop == end && count >= first && count <= last) return count;
  throw Error(ExitCode::usage, {.where = where,
                                .what = "not usable",
                                .expected = "a whole number from " + std::to_string(first) +
                                            " to " + std::to_string(last),
                                .got = "\"" + text + "\""});
}

double parse_positive(const std::string& where, const std::string& text,
                      const std::string& called) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc() && stop == end && std::isfinite(value) && value > 0) return value;
  throw Error(ExitCode::usage, {.where = where,
                                .what = "not usable",
                                .expected = "a " + called + " above 0",
                                .got = "\"" + text + "\""});
}

double parse_seconds(const std::string& where, const std::string& text) {
  return parse_positive(where, text, "number of seconds");
}

DType parse_float_type(const std::string& where, const std::string& text) {
  expect_one_of(where, "dtype", text, {"float64", "float32", "bfloat16", "fp8"});
  return parse_dtype(text);
}

void check_names(const Options& options) {
  if (options.config) check_config(*options.config);
  if (options.case_name) io::case_of_words(*options.case_name);
  check_case_against_config(options);
  expect_one_of("--fail-on", "choice", options.fork.fail_on, {"any", "new"});
  for (const std::string& name : options.fork.cases) io::find_case(name);
  if (options.noise && options.candidates.empty())
    throw Error(ExitCode::usage, {.where = "--noise",
                                  .what = "the noise of a candidate's engine",
                                  .expected = "--candidate FILE beside it",
                                  .got = "no candidate"});
  if (options.dialect) find_dialect(*options.dialect);
  check_suites(options.suites);
  check_impls(options);
  expect_one_of("--device", "device", options.device, kDevices);
  if (options.command == Command::dump) check_dump(options);
  if (options.command == Command::weights_make) check_weights_make(options);
  if (options.command == Command::weights_check) check_weights_check(options);
  if (options.command == Command::list && !options.arguments.empty()) {
    expect_one_of("list", "group", options.arguments.front(), list_groups());
  }
  check_weights(options.weights);
}

}  // namespace dsv32::harness
