#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

namespace dsv32::harness {

/// A program that was started in a process group of its own.
struct Child {
  pid_t pid = -1;
  int out = -1, err = -1;  // read ends of its output
};

/// A process that outlives this one by a moment, to end the groups that it was told of. A killed
/// launcher cannot do that itself.
class Guardian {
 public:
  Guardian();
  ~Guardian();
  Guardian(const Guardian&) = delete;
  Guardian& operator=(const Guardian&) = delete;
  void watch(pid_t group) const;

 private:
  pid_t pid_ = -1;
  int pipe_ = -1;
};

/// Starts a program with these variables set (an empty value: unset). It is killed when this thread
/// ends. Throws Error (usage) when there is no such program, (environment) when there are no means.
Child start_program(const std::vector<std::string>& command,
                    const std::map<std::string, std::string>& variables);

/// What became of a program, by the status of wait: "was killed by signal 9 (Killed)".
std::string fate_of(int status);

/// Signals a whole group; one that is gone is no error.
void signal_group(pid_t group, int number);

}  // namespace dsv32::harness
