#include <unistd.h>

#include <cstdlib>
#include <sstream>

#include "harness/fork/fork.h"
#include "harness/launch/program.h"
#include "src/io/print.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

constexpr double kProbeSeconds = 60;
/// Prints what is not there. Nothing is imported: that takes seconds, and its failure is a verdict.
constexpr char kProbe[] =
    "import importlib.util as u, sys\n"
    "sys.path = [p for p in sys.path if p]\n"
    "if sys.version_info < (3, 10): print('Python', 3.10)\n"
    "print(*[n for n in sys.argv[1:] if not u.find_spec(n)], sep='\\n')\n";

/// What an interpreter lacks; "cannot be started" and the like where it does not answer.
std::string lacks(const std::string& python, const char* besides) {
  std::vector<std::string> command = {python, "-c", kProbe, "torch", "numpy", "safetensors"};
  if (besides != nullptr) command.push_back(besides);
  std::string missing, errors;
  ProgramEnd end;
  try {
    end = run_program({.command = command,
                       .variables = {},
                       .seconds = kProbeSeconds,
                       .on_line = [&](bool is_error, const std::string& line) {
                         std::string& text = is_error ? errors : missing;
                         if (!line.empty()) text += (text.empty() ? "" : ", ") + line;
                       }});
  } catch (const Error&) {
    return "cannot be started";
  }
  if (end.code == 0) return missing.empty() ? "" : "no " + missing;
  return end.fate + (errors.empty() ? "" : ": " + io::printable(errors));
}

std::vector<std::string> interpreters_of_path() {
  const char* set = std::getenv("PATH");
  std::istringstream folders(set != nullptr ? set : "");
  std::vector<std::string> found;
  for (std::string folder; std::getline(folders, folder, ':');) {
    for (const char* name : {"python3", "python"}) {
      const fs::path path = fs::path(folder.empty() ? "." : folder) / name;
      if (access(path.c_str(), X_OK) == 0) found.push_back(path.string());
    }
  }
  return found;
}

}  // namespace

std::string find_python(const std::optional<std::string>& asked, bool has_tree) {
  const std::string wanted = std::string("an interpreter with torch, numpy, safetensors and ") +
                             (has_tree ? "huggingface_hub" : "transformers");
  if (asked) {
    // What a source tree wants besides, only its import can tell.
    const std::string lack = lacks(*asked, has_tree ? nullptr : "transformers");
    if (lack.empty()) return *asked;
    throw Error(
        ExitCode::environment,
        {.where = "--python " + *asked, .what = "packages", .expected = wanted, .got = lack});
  }
  std::string tried;
  for (const std::string& python : interpreters_of_path()) {
    const std::string lack = lacks(python, has_tree ? "huggingface_hub" : "transformers");
    if (lack.empty()) return python;
    tried += (tried.empty() ? "" : "; ") + python + ": " + lack;
  }
  throw Error(ExitCode::environment, {.where = "--python",
                                      .what = "not given, and none on PATH will do",
                                      .expected = wanted,
                                      .got = tried.empty() ? "no python3 on PATH" : tried,
                                      .hint = "name the fork's own: --python .venv/bin/python"});
}

}  // namespace dsv32::harness
