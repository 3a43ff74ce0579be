#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

#include "harness/cli/commands.h"
#include "harness/cli/options.h"
#include "harness/report/text.h"
#include "src/io/print.h"
#include "src/log/log.h"

namespace {

using dsv32::ExitCode;
namespace harness = dsv32::harness;

/// Line by line, without anything that could steer a terminal: names in messages come from files of
/// strangers.
void say(const std::string& message) {
  constexpr size_t kLongest = 4000;
  std::istringstream lines(message);
  for (std::string line; std::getline(lines, line);) {
    dsv32::log_error(dsv32::io::printable(line, kLongest));
  }
}

void ask_for_report(const std::string& what, const std::vector<std::string>& arguments) {
  std::string command = "dsv32-verify";
  for (const std::string& word : arguments) command.append(" ").append(harness::shell_word(word));
  say("internal error: this is a bug of dsv32-verify, not of your files");
  say("please report it with these lines:");
  say("  version: " DSV32_VERSION);
  say("  command: " + command);
  say("  error:   " + what);
}

/// torch says "out of memory" in an exception of its own type.
bool is_memory(const std::string& what) {
  return what.find("out of memory") != std::string::npos ||
         what.find("not enough memory") != std::string::npos ||
         what.find("can't allocate memory") != std::string::npos;
}

ExitCode out_of_memory() {
  say("memory: not enough for this run; hint: a smaller case, fewer --candidate files, or one "
      "suite");
  return ExitCode::environment;
}

ExitCode run(const std::vector<std::string>& arguments) {
  try {
    const harness::Options options = harness::parse_command_line(arguments);
    if (std::getenv("RUNNER_DEBUG") || options.verbose) set_log_level(dsv32::LogLevel::debug);
    if (options.quiet) set_log_level(dsv32::LogLevel::error);
    const ExitCode code = run_command(options);
    if (std::cout.flush()) return code;
    say("standard output: cannot be written; hint: is the disk full, or the reader gone?");
    return worst(code, ExitCode::environment);
  } catch (const dsv32::Error& error) {
    if (error.code() == ExitCode::internal) {
      ask_for_report(error.what(), arguments);
    } else {
      say(error.what());
    }
    return error.code();
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::system_error& error) {
    say(std::string("system: ") + error.what());
    return ExitCode::environment;
  } catch (const std::exception& error) {
    if (is_memory(error.what())) return out_of_memory();
    ask_for_report(error.what(), arguments);
  } catch (...) {
    ask_for_report("an exception that is no std::exception", arguments);
  }
  return ExitCode::internal;
}

/// Without the ends of static objects: torch takes a quarter of a short command's time to
/// unregister each of its ops.
[[noreturn]] void leave(ExitCode code) {
  std::fflush(nullptr);
  std::_Exit(static_cast<int>(code));
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // `ulimit -f`: a write that fails (exit 6), not a death
  leave(run(std::vector<std::string>(argv + 1, argv + argc)));
}
