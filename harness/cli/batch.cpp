#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "golden/reader/golden.h"
#include "harness/cli/commands.h"

namespace dsv32::harness {

ExitCode batch_make_command(const Options& options) {
  const char* chosen = std::getenv("DSV32_PYTHON");
  const std::string python = chosen == nullptr ? "python3" : chosen;
  const std::filesystem::path tool =
      golden::default_directory().parent_path() / "dump" / "dsv32_batch.py";
  std::vector<std::string> words = {python, tool.string()};
  words.insert(words.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execvp(python.c_str(), argv.data());  // comes back only when it cannot start
  throw Error(ExitCode::environment, {.where = "batch make",
                                      .what = python,
                                      .expected = "a Python with numpy and tokenizers",
                                      .got = std::strerror(errno),
                                      .hint = "DSV32_PYTHON=PATH dsv32-verify batch make ..."});
}

}  // namespace dsv32::harness
