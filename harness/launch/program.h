#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace dsv32::harness {

/// A program that is run to its end.
struct ProgramPlan {
  std::vector<std::string> command;                   // a program and its arguments
  std::map<std::string, std::string> variables = {};  // set; an empty value: unset
  double seconds = 0;                                 // after which it is killed; 0: never
  std::function<bool()> interrupted = {};             // then it is killed as well
  std::function<void(bool is_error, const std::string& line)> on_line = {};
};

struct ProgramEnd {
  int code = 0;      // its exit code; 128 + the signal that killed it
  std::string fate;  // "ended with exit code 1"
  bool late = false;
};

/// Runs a program, with everything that it starts in its process group; nothing of that is left
/// behind, also when this process is killed. Throws Error (usage) when it cannot be started.
ProgramEnd run_program(const ProgramPlan& plan);

}  // namespace dsv32::harness
