#include "harness/launch/program.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <optional>

#include "harness/launch/output_lines.h"
#include "harness/launch/process_groups.h"

namespace dsv32::harness {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPoll = 20ms;
constexpr auto kDrain = 1s;  // for output that a process outside the group still holds open

/// A child with its streams; killed and waited for at the latest when this goes.
class Running {
 public:
  explicit Running(const ProgramPlan& plan)
      : plan_(plan),
        child_(start_program(plan.command, plan.variables)),
        out_(child_.out),
        err_(child_.err) {
    guardian_.watch(child_.pid);
  }
  ~Running() {
    if (!status_) {
      signal_group(child_.pid, SIGKILL);
      waitpid(child_.pid, nullptr, 0);
    }
    out_.close();
    err_.close();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  void kill() const { signal_group(child_.pid, SIGKILL); }
  std::optional<int> status() const { return status_; }
  bool open() const { return out_.file() >= 0 || err_.file() >= 0; }

  void pass_output() {
    pollfd files[] = {{.fd = out_.file(), .events = POLLIN, .revents = 0},
                      {.fd = err_.file(), .events = POLLIN, .revents = 0}};
    if (poll(files, 2, static_cast<int>((kPoll / 1ms))) <= 0) return;
    if (files[0].revents != 0) out_.read_some([&](const std::string& line) { say(false, line); });
    if (files[1].revents != 0) err_.read_some([&](const std::string& line) { say(true, line); });
  }

  void reap() {
    siginfo_t info = {};
    if (status_) return;
    const id_t pid = static_cast<id_t>(child_.pid);
    if (waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return;
    kill();  // what it started goes with it, while its number cannot be anybody else's yet
    int status = 0;
    waitpid(child_.pid, &status, 0);
    guardian_.watch(-child_.pid);
    status_ = status;
  }

 private:
  void say(bool is_error, const std::string& line) const {
    if (plan_.on_line) plan_.on_line(is_error, line);
  }

  const ProgramPlan& plan_;
  Guardian guardian_;
  Child child_;
  OutputLines out_, err_;
  std::optional<int> status_;
};

}  // namespace

ProgramEnd run_program(const ProgramPlan& plan) {
  constexpr int kSignalExit = 128;  // the shell's convention
  const auto start = Clock::now();
  Running running(plan);
  ProgramEnd end;
  std::optional<Clock::time_point> drain_until;
  while (!running.status() || running.open()) {
    running.pass_output();
    running.reap();
    if (running.status()) drain_until = drain_until.value_or(Clock::now() + kDrain);
    if (drain_until && Clock::now() > *drain_until) break;
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    const bool late = plan.seconds > 0 && elapsed.count() > plan.seconds;
    if (running.status() || (!late && !(plan.interrupted && plan.interrupted()))) continue;
    end.late = late;
    running.kill();
  }
  const int status = *running.status();
  end.code = WIFEXITED(status) ? WEXITSTATUS(status) : kSignalExit + WTERMSIG(status);
  end.fate = fate_of(status);
  return end;
}

}  // namespace dsv32::harness
