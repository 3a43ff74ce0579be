#include "harness/launch/process_groups.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "src/model/errors.h"

extern char** environ;

namespace dsv32::harness {
namespace {

[[noreturn]] void refuse(const std::string& what, int error) {
  throw Error(
      ExitCode::environment,
      {.where = "launch", .what = what, .expected = "success", .got = std::strerror(error)});
}

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) refuse("a pipe", errno);
    read = ends[0];
    write = ends[1];
  }
};

/// Ends every group that it read of, once the pipe has no writer any more. Only calls that are safe
/// after a fork of a process with threads.
[[noreturn]] void guard(int pipe) {
  constexpr int kMostGroups = 1024;
  static pid_t groups[kMostGroups];
  int count = 0;
  for (;;) {
    pid_t group = 0;
    const ssize_t size = read(pipe, &group, sizeof group);
    if (size < 0 && errno == EINTR) continue;
    if (size != sizeof group) break;
    // A negative number: this group has ended.
    for (int i = 0; group < 0 && i < count; ++i)
      if (groups[i] == -group) groups[i] = 0;
    if (group > 0 && count < kMostGroups) groups[count++] = group;
  }
  for (int i = 0; i < count; ++i)
    if (groups[i] > 0) kill(-groups[i], SIGKILL);
  _exit(0);
}

std::vector<std::string> environment_with(const std::map<std::string, std::string>& variables) {
  std::vector<std::string> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (variables.count(text.substr(0, text.find('='))) == 0) entries.push_back(text);
  }
  for (const auto& [name, value] : variables)
    if (!value.empty()) entries.push_back(name + "=" + value);
  return entries;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> list;
  for (std::string& text : texts) list.push_back(text.data());
  list.push_back(nullptr);
  return list;
}

/// After the fork: only calls that are safe in a process that had threads.
[[noreturn]] void become(char* const* arguments, char* const* environment, pid_t parent, int out,
                         int err, int report) {
  constexpr int kNoProgram = 127;
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() == parent) {
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    for (const int number : {SIGINT, SIGTERM, SIGPIPE, SIGXFSZ}) signal(number, SIG_DFL);
    execvpe(arguments[0], arguments, environment);
    const int error = errno;
    if (write(report, &error, sizeof error) < 0) _exit(kNoProgram);
  }
  _exit(kNoProgram);
}

/// The error number that the child reported; 0 when the program runs.
int start_error(int pipe) {
  int error = 0;
  ssize_t size = 0;
  do {
    size = read(pipe, &error, sizeof error);
  } while (size < 0 && errno == EINTR);
  return size == sizeof error ? error : 0;
}

}  // namespace

Guardian::Guardian() {
  const Pipe pipe;
  pid_ = fork();
  if (pid_ < 0) refuse("a process", errno);
  if (pid_ == 0) {
    setsid();  // Ctrl-C is not for it
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) signal(number, SIG_IGN);
    dup2(pipe.read, STDIN_FILENO);
    close_range(STDIN_FILENO + 1, ~0u, 0);
    guard(STDIN_FILENO);
  }
  close(pipe.read);
  pipe_ = pipe.write;
}

Guardian::~Guardian() {
  close(pipe_);
  waitpid(pid_, nullptr, 0);
}

void Guardian::watch(pid_t group) const {
  if (write(pipe_, &group, sizeof group) != sizeof group) refuse("a watch", errno);
}

Child start_program(const std::vector<std::string>& command,
                    const std::map<std::string, std::string>& variables) {
  std::vector<std::string> words = command, settings = environment_with(variables);
  const std::vector<char*> arguments = pointers(words), environment = pointers(settings);
  const Pipe out, err, report;
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) refuse("a process", errno);
  if (pid == 0)
    become(arguments.data(), environment.data(), parent, out.write, err.write, report.write);
  setpgid(pid, pid);  // in both, so that the group is there whoever comes first
  for (const Pipe* pipe : {&out, &err, &report}) close(pipe->write);
  const int error = start_error(report.read);
  close(report.read);
  if (error == 0) return {pid, out.read, err.read};
  close(out.read);
  close(err.read);
  waitpid(pid, nullptr, 0);
  throw Error(ExitCode::usage, {.where = "launch",
                                .what = command.front(),
                                .expected = "a program that can be started",
                                .got = std::strerror(error)});
}

std::string fate_of(int status) {
  if (WIFEXITED(status)) return "ended with exit code " + std::to_string(WEXITSTATUS(status));
  const int number = WTERMSIG(status);
  return "was killed by signal " + std::to_string(number) + " (" + strsignal(number) + ")";
}

void signal_group(pid_t group, int number) { kill(-group, number); }

}  // namespace dsv32::harness
