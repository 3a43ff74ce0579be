#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "harness/cli/commands.h"
#include "src/io/io.h"
#include "src/log/log.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void cannot_write(const std::string& option, const fs::path& path,
                               const std::string& expected, const std::string& got) {
  throw Error(ExitCode::environment,
              {.where = option + " " + path.string(),
               .what = "cannot be written",
               .expected = expected,
               .got = got,
               .hint = "nothing was run; choose another place with " + option});
}

/// Makes the folder where it is missing, and a file in it for a moment.
void probe_folder(const std::string& option, const fs::path& path, const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (!fs::is_directory(folder)) {
    const std::string why = error ? error.message() : "there is something else of that name";
    cannot_write(option, path, "a folder that can be made", why);
  }
  const fs::path probe = folder / (".dsv32-verify." + std::to_string(getpid()));
  std::ofstream file(probe);
  file << "probe" << std::flush;
  const bool written = file.good();
  file.close();
  fs::remove(probe, error);
  if (!written)
    cannot_write(option, path, "a folder that takes files", "no file can be made in it");
}

void probe_file(const std::string& option, const fs::path& path) {
  if (fs::is_directory(path)) cannot_write(option, path, "the name of a file", "a folder");
  probe_folder(option, path, fs::absolute(path).parent_path());
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
  std::cout << (options.json ? to_json(report) : to_terminal(report, color, options.verbose));
  if (std::cout.flush()) return;
  throw Error(ExitCode::environment, {.where = "standard output",
                                      .what = "cannot be written",
                                      .hint = "is the disk full, or the reader gone?"});
}

}  // namespace

void probe_outputs(const Options& options) {
  const bool out_is_file = options.command == Command::dump;
  if (options.out && out_is_file) probe_file("--out", *options.out);
  if (options.out && !out_is_file) probe_folder("--out", *options.out, *options.out);
  if (options.junit) probe_file("--junit", *options.junit);
  if (options.markdown) probe_file("--md", *options.markdown);
}

void remove_unfinished(const Options& options) {
  if (!options.out) return;
  const fs::path out = fs::absolute(*options.out);
  const std::string ending = ".tmp." + std::to_string(getpid());  // io::AtomicFile
  std::error_code error;
  for (const auto& entry :
       fs::directory_iterator(fs::is_directory(out) ? out : out.parent_path(), error)) {
    if (entry.path().filename().string().ends_with(ending)) fs::remove(entry.path(), error);
  }
}

ExitCode deliver(Report report, const Options& options) {
  report.tool_version = DSV32_VERSION;
  report.command = options.repro;
  ExitCode code = report.exit_code();
  if (options.out) attempt(code, [&] { write_report(report, *options.out); });
  if (options.junit) attempt(code, [&] { io::write_file(*options.junit, to_junit(report)); });
  if (options.markdown)
    attempt(code, [&] { io::write_file(*options.markdown, to_markdown(report)); });
  attempt(code, [&] { print(report, options); });
  return code;
}

}  // namespace dsv32::harness
