#include <commit.h>

#include <filesystem>
#include <iostream>

#include "harness/cli/commands.h"
#include "src/io/io.h"
#include "src/log/log.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

/// An option, or what else names a file.
struct Named {
  std::string by;
  fs::path path;

  std::string text() const { return by + " " + path.string(); }
};

/// What the error says, with the option that is to be changed.
[[noreturn]] void cannot_write(const Named& output, const Error& error) {
  throw Error(ExitCode::environment,
              {.where = output.text(),
               .what = "cannot be written",
               .expected = error.complaint().expected,
               .got = error.complaint().got,
               .hint = "nothing was run; choose another place with " + output.by});
}

bool is_folder_output(const Options& options) { return options.command != Command::dump; }

void make_folder(const Named& output) {
  try {
    io::make_directory(output.path);
  } catch (const Error& error) {
    cannot_write(output, error);
  }
}

/// Every file that will be written. Those of a checkpoint folder are its maker's affair.
std::vector<Named> output_files(const Options& options) {
  std::vector<Named> files;
  if (options.out && options.command == Command::weights_make) {
    files.push_back({"--out", *options.out / fs::path("config.json")});
  } else if (options.out && is_folder_output(options)) {
    for (const char* name : {kReportMarkdown, kReportHtml, kReportJunit, kReportJson})
      files.push_back({"--out", *options.out / fs::path(name)});
  } else if (options.out) {
    files.push_back({"--out", *options.out});
  }
  if (options.junit) files.push_back({"--junit", *options.junit});
  if (options.markdown) files.push_back({"--md", *options.markdown});
  if (options.html) files.push_back({"--html", *options.html});
  if (options.annotations) files.push_back({"--annotations", *options.annotations});
  return files;
}

void add_files_of(const Named& folder, std::vector<Named>& files) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder.path, error))
    files.push_back({folder.by, entry.path()});
}

/// Every file that is read: what the options name, and what belongs to this program.
std::vector<Named> input_files(const Options& options) {
  std::vector<Named> files;
  for (const std::string& path : options.candidates) files.push_back({"--candidate", path});
  if (options.batch) files.push_back({"--batch", *options.batch});
  if (options.base_report) files.push_back({"--base", *options.base_report});
  if (options.command == Command::compare)
    for (const std::string& path : options.arguments) files.push_back({"compare", path});
  if (options.command == Command::report_render || options.command == Command::report_diff)
    for (const std::string& path : options.arguments) files.push_back({"report", path});
  std::vector<Named> folders = {{"--weights", options.weights},
                                {"the program's own", io::home() / "golden" / "data"},
                                {"the program's own", io::home() / "configs"}};
  for (const std::string& name : io::config_names())
    folders.push_back({"the program's own", io::home() / "configs" / name});
  if (options.config && !options.config->starts_with('{')) {
    files.push_back({"--config", *options.config});
    folders.push_back({"--config", *options.config});
  }
  for (const Named& folder : folders) add_files_of(folder, files);
  return files;
}

[[noreturn]] void refuse_overlap(const Named& output, const std::string& expected,
                                 const std::string& got) {
  throw Error(ExitCode::usage, {.where = output.text(),
                                .what = "would be overwritten",
                                .expected = expected,
                                .got = got,
                                .hint = "nothing was run; choose another place with " + output.by});
}

/// No output is an input or another output, through whatever links.
void refuse_overlaps(const std::vector<Named>& outputs, const std::vector<Named>& inputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    for (const Named& input : inputs)
      if (fs::exists(input.path) && io::same_file(outputs[i].path, input.path))
        refuse_overlap(outputs[i], "a file that this run does not read", input.text());
    for (size_t j = 0; j < i; ++j)
      if (io::same_file(outputs[i].path, outputs[j].path))
        refuse_overlap(outputs[i], "one file for each output", outputs[j].text());
  }
}

/// The option whose data standard output carries in place of the report for people.
std::optional<std::string> owner_of_stdout(const Options& options,
                                           const std::vector<Named>& outputs) {
  std::vector<std::string> owners;
  if (options.json) owners.push_back("--json");
  for (const Named& output : outputs)
    if (io::is_standard_output(output.path)) owners.push_back(output.text());
  if (owners.empty()) return std::nullopt;
  if (owners.size() == 1) return owners.front();
  throw Error(ExitCode::usage, {.where = "standard output",
                                .what = "takes the data of one option",
                                .expected = "one of them",
                                .got = owners[0] + " and " + owners[1],
                                .hint = "nothing was run; give one of them a file"});
}

void refuse_stream_as_folder(const Options& options) {
  if (!options.out || !is_folder_output(options) || *options.out != "-") return;
  throw Error(ExitCode::usage, {.where = "--out -",
                                .what = "not a folder",
                                .expected = "the name of a folder",
                                .got = "standard output",
                                .hint = "--json, --md - and the like write to standard output"});
}

/// One file or folder more; a failure is said and remembered, the rest is still written.
template <typename Write>
void attempt(ExitCode& code, const Write& write) {
  try {
    write();
  } catch (const Error& error) {
    log_error(error.what());
    code = worst(code, error.code());
  }
}

void print(const Report& report, const Options& options) {
  const bool color = use_color(options.color);
  const size_t width = options.width ? static_cast<size_t>(*options.width) : output_width();
  std::cout << (options.json ? to_json(report)
                             : to_terminal(report, color, options.verbose, width));
  if (std::cout.flush()) return;
  throw Error(ExitCode::environment, {.where = "standard output",
                                      .what = "cannot be written",
                                      .hint = "is the disk full, or the reader gone?"});
}

}  // namespace

void probe_outputs(const Options& options) {
  refuse_stream_as_folder(options);
  const std::vector<Named> outputs = output_files(options);
  std::vector<Named> once = outputs;
  if (!owner_of_stdout(options, outputs)) once.push_back({"standard output", "/dev/stdout"});
  refuse_overlaps(once, input_files(options));
  if (options.out && is_folder_output(options)) make_folder({"--out", *options.out});
  for (const Named& output : outputs) {
    try {
      io::probe_output(output.path);
    } catch (const Error& error) {
      cannot_write(output, error);
    }
  }
}

ExitCode deliver(Report report, const Options& options, const Report* base) {
  report.tool_version = DSV32_VERSION;
  report.environment["commit"] = DSV32_COMMIT;
  report.command = options.repro;
  return worst(report.exit_code(), write_renderings(report, options, base));
}

ExitCode write_renderings(const Report& report, const Options& options, const Report* base) {
  ExitCode code = ExitCode::ok;
  const Beside beside{.link = options.link, .base = base};
  if (options.out) attempt(code, [&] { write_report(report, *options.out, beside); });
  if (options.junit) attempt(code, [&] { io::write_file(*options.junit, to_junit(report)); });
  if (options.markdown)
    attempt(code, [&] { io::write_file(*options.markdown, to_markdown(report, beside)); });
  if (options.html) attempt(code, [&] { io::write_file(*options.html, to_html(report, beside)); });
  if (options.annotations)
    attempt(code, [&] { io::write_file(*options.annotations, to_annotations(report)); });
  const auto owner = owner_of_stdout(options, output_files(options));
  if (!owner || options.json) attempt(code, [&] { print(report, options); });
  return code;
}

}  // namespace dsv32::harness
