#include <algorithm>

#include "harness/cli/names.h"
#include "harness/cli/parser.h"
#include "harness/launch/launch.h"
#include "harness/report/text.h"
#include "src/io/io.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

/// The subcommand that the words reached, or the program itself.
CLI::App* reached(CLI::App& app) {
  CLI::App* last = &app;
  while (!last->get_subcommands().empty()) last = last->get_subcommands().back();
  return last;
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::vector<std::string> verbs_of(CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands([](CLI::App*) { return true; })) {
    if (!verb->get_group().empty()) names.push_back(verb->get_name());
  }
  return names;
}

std::string full_name(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  return parent == nullptr ? app.get_name() : full_name(*parent) + " " + app.get_name();
}

/// What the user may have meant by a word that this command does not know.
std::string guess(CLI::App& app, const std::string& word) {
  constexpr size_t kShortFlag = 2;  // "-x" is near to every other letter
  if (word.starts_with("-")) return word.size() > kShortFlag ? nearest(word, flags_of(app)) : "";
  const std::vector<std::string> configs = io::config_names();
  const std::vector<std::string> flags = flags_of(app);
  const bool takes_config = std::find(flags.begin(), flags.end(), "--config") != flags.end();
  if (takes_config && std::find(configs.begin(), configs.end(), word) != configs.end())
    return "--config " + word;
  return nearest(word, verbs_of(app));
}

[[noreturn]] void refuse_word(CLI::App& app, const std::string& word) {
  const bool is_flag = word.starts_with("-");
  const std::vector<std::string> verbs = verbs_of(app);
  const std::string name = word.substr(0, word.find('='));
  const std::string near = guess(app, name);
  throw Error(ExitCode::usage, {.where = full_name(app),
                                .what = is_flag ? "unknown option" : "unknown word",
                                .expected = is_flag         ? "an option of this command"
                                            : verbs.empty() ? "no further word"
                                                            : alternatives(verbs),
                                .got = "\"" + word + "\"",
                                .hint = near.empty() ? "see " + full_name(app) + " --help"
                                                     : "did you mean " + near + "?"});
}

[[noreturn]] void refuse(Parser& parser, const CLI::ParseError& error) {
  CLI::App& app = *reached(parser.app);
  const std::vector<std::string> extras = parser.app.remaining(true);
  if (!extras.empty()) refuse_word(app, extras.front());
  throw Error(
      ExitCode::usage,
      {.where = full_name(app), .what = error.what(), .hint = "see " + full_name(app) + " --help"});
}

/// Options of the main job mean nothing to a subcommand: say so instead of dropping them.
void refuse_mixed(Parser& parser) {
  if (parser.app.get_subcommands().empty()) return;
  const CLI::App& verb = *reached(parser.app);
  for (const CLI::Option* option : parser.app.get_options()) {
    if (option->count() == 0 || option->get_group() == kOther) continue;
    throw Error(ExitCode::usage, {.where = full_name(verb),
                                  .what = "an option before the command",
                                  .expected = "options of " + verb.get_name() + " after it",
                                  .got = option->get_name(),
                                  .hint = "see " + full_name(verb) + " --help"});
  }
}

void refuse_later(const Parser& parser) {
  for (const CLI::App* later : parser.later) {
    if (later->parsed()) not_in_this_version(later->get_name());
  }
}

std::optional<std::string> given(const std::string& text) {
  return text.empty() ? std::nullopt : std::optional<std::string>(text);
}

ColorChoice parse_color(const std::string& text) {
  if (text.empty()) return ColorChoice::automatic;
  expect_one_of("--color", "choice", text, {"auto", "always", "never"});
  if (text == "always") return ColorChoice::always;
  return text == "never" ? ColorChoice::never : ColorChoice::automatic;
}

/// The values of an option as they are typed: "a,b" for a list, one by one for a repeated option.
std::vector<std::string> words_of(const CLI::Option& option) {
  if (option.get_delimiter() == '\0') return option.results();
  std::string list;
  for (const std::string& value : option.results()) list += (list.empty() ? "" : ",") + value;
  return {list};
}

/// The options that decide the verdict, in a fixed order; where it is written does not belong to
/// it.
std::string repro_command(const Parser& parser) {
  std::string command = "dsv32-verify";
  for (const CLI::Option* option : parser.app.get_options()) {
    const bool decides = option->get_group() == kJudged || option->get_group() == kHow;
    if (!decides || option->count() == 0) continue;
    const std::string name = option->get_lnames().empty() ? "-" + option->get_snames().front()
                                                          : "--" + option->get_lnames().front();
    for (const std::string& value : words_of(*option)) {
      command += " " + name + " " + shell_word(value);
    }
  }
  return command == "dsv32-verify" ? command + " --config tiny" : command;
}

Command command_of(const Parser& parser) {
  for (const Verb& verb : parser.verbs) {
    if (verb.app->parsed()) return verb.command;
  }
  if (parser.raw.version) return Command::version;
  if (parser.raw.list) return Command::list;
  return parser.raw.show_config ? Command::show_config : Command::judge;
}

/// An option given as the empty string is a slip (an unset shell variable), not an absent option.
void refuse_empty(const CLI::App& app) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_type_size() == 0) continue;
    for (const std::string& value : option->results()) {
      if (!value.empty()) continue;
      throw Error(ExitCode::usage, {.where = option->get_name(),
                                    .what = "empty value",
                                    .expected = "a value",
                                    .got = "\"\""});
    }
  }
}

/// How many ranks, and where they meet.
void read_launch(const Raw& raw, Options& options) {
  constexpr int64_t kMostNodes = 4096, kLastPort = 65535;
  options.nproc = parse_count("--nproc", raw.nproc, 1, kMostRanks);
  if (!raw.nnodes.empty()) options.nnodes = parse_count("--nnodes", raw.nnodes, 1, kMostNodes);
  if (!raw.node_rank.empty())
    options.node_rank = parse_count("--node-rank", raw.node_rank, 0, options.nnodes - 1);
  if (!raw.master_port.empty())
    options.master_port = parse_count("--master-port", raw.master_port, 1, kLastPort);
  options.master_addr = raw.master_addr.empty() ? std::nullopt : std::optional(raw.master_addr);
  if (options.nnodes == 1 || (options.master_addr && options.master_port != 0)) return;
  throw Error(ExitCode::usage,
              {.where = "--nnodes",
               .what = "several machines need one meeting place",
               .expected = "--master-addr and --master-port",
               .got = options.master_addr ? "no --master-port" : "no --master-addr"});
}

void read_fork(const Raw& raw, ForkOptions& fork) {
  fork.path = given(raw.path);
  fork.base = given(raw.base);
  fork.python = given(raw.python);
  fork.cases = raw.cases;
  fork.cls = given(raw.cls);
  fork.device_map = given(raw.device_map);
  fork.attn = given(raw.attn);
  fork.experts = given(raw.experts);
  if (!raw.job_seconds.empty()) fork.job_seconds = parse_seconds("--job-timeout", raw.job_seconds);
  if (!raw.job_gib.empty())
    fork.job_gib = parse_positive("--job-memory", raw.job_gib, "number of GiB");
}

Options finish(Parser& parser) {
  Raw& raw = parser.raw;
  Options options = std::move(raw.options);
  options.command = command_of(parser);
  options.config = given(raw.config);
  options.case_name = given(raw.case_name);
  options.dialect = given(raw.dialect);
  options.batch = given(raw.batch);
  options.noise = given(raw.noise);
  options.base_report = given(raw.base_report);
  options.out = given(raw.out);
  options.junit = given(raw.junit);
  options.markdown = given(raw.markdown);
  options.html = given(raw.html);
  options.annotations = given(raw.annotations);
  options.color = parse_color(raw.color);
  if (!raw.seed.empty()) options.seed = parse_seed("--seed", raw.seed);
  if (!raw.timeout.empty()) options.timeout = parse_seconds("--timeout", raw.timeout);
  for (const std::string& text : raw.dtypes) {
    options.dtypes.push_back(parse_float_type("--dtype", text));
  }
  if (options.command == Command::launch) read_launch(raw, options);
  if (options.command == Command::fork) read_fork(raw, options.fork);
  if (!raw.format.empty()) {
    expect_one_of("--format", "format", raw.format, {"bf16", "fp8", "demo"});
    options.format = raw.format;
  }
  if (!raw.config_style.empty())
    options.config_style = static_cast<int>(parse_count("--config-style", raw.config_style, 4, 5));
  constexpr int64_t kMostAdapterRank = 1 << 16;
  if (!raw.rank.empty()) options.rank = parse_count("--rank", raw.rank, 1, kMostAdapterRank);
  if (!raw.scale.empty()) options.scale = parse_positive("--scale", raw.scale, "number");
  constexpr int64_t kNarrowest = 20, kWidest = 10000;
  if (!raw.width.empty()) options.width = parse_count("--width", raw.width, kNarrowest, kWidest);
  expect_one_of("--fail-on", "choice", options.fail_on, {"new", "any"});
  options.repro = repro_command(parser);
  return options;
}

Options help_of(Parser& parser) {
  Options options;
  options.command = Command::help;
  options.help = parser.app.help();
  return options;
}

/// As CLI11 takes them, the last one first. "help WORD.." is "WORD.. --help".
std::vector<std::string> words_for_parser(const std::vector<std::string>& arguments) {
  std::vector<std::string> words(arguments.rbegin(), arguments.rend());
  if (words.empty() || words.back() != "help") return words;
  words.pop_back();
  words.insert(words.begin(), "--help");
  return words;
}

}  // namespace

Options parse_command_line(const std::vector<std::string>& arguments) {
  const std::unique_ptr<Parser> parser = make_parser();
  try {
    parser->app.parse(words_for_parser(arguments));
  } catch (const CLI::CallForHelp&) {
    return help_of(*parser);
  } catch (const CLI::ParseError& error) {
    refuse_later(*parser);
    refuse(*parser, error);
  }
  refuse_later(*parser);
  std::vector<std::string> extras = parser->app.remaining(true);
  CLI::App& last = *reached(parser->app);
  if (last.get_name() == "launch") std::erase(extras, "--");  // before the command: no extra word
  if (!extras.empty()) refuse_word(last, extras.front());
  refuse_mixed(*parser);
  for (const CLI::App* app = &last; app != nullptr; app = app->get_parent()) refuse_empty(*app);
  Options options = finish(*parser);
  if (options.verbose && options.quiet) {
    throw Error(ExitCode::usage,
                {.where = "-v and -q", .what = "contradict each other", .expected = "one of them"});
  }
  check_names(options);
  return options;
}

}  // namespace dsv32::harness
