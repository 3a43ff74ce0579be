#include "harness/launch/launch.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <optional>

#include "harness/launch/output_lines.h"
#include "harness/launch/process_groups.h"
#include "src/log/log.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPoll = 20ms;
constexpr auto kFarewell = 2s;  // for the others to say which rank they miss
constexpr auto kGrace = 2s;     // between SIGTERM and SIGKILL

struct Rank {
  int number = 0;
  Child child;
  OutputLines out{-1}, err{-1};
  std::optional<int> status;  // of wait, once it has ended
};

int code_of(int status) {
  // A rank that was killed is a lost rank.
  return WIFEXITED(status) ? WEXITSTATUS(status) : static_cast<int>(ExitCode::environment);
}

/// Several failures: the worst of our own codes; a foreign code stands for itself.
int worse(int a, int b) {
  constexpr int kLastOwn = static_cast<int>(ExitCode::environment);
  if (a == 0 || b == 0) return std::max(a, b);
  if (a > kLastOwn || b > kLastOwn) return a;
  return static_cast<int>(worst(static_cast<ExitCode>(a), static_cast<ExitCode>(b)));
}

class Launcher {
 public:
  explicit Launcher(const LaunchPlan& plan) : plan_(plan) {}

  ~Launcher() {
    for (Rank& rank : ranks_) {
      if (!rank.status) {
        signal_group(rank.child.pid, SIGKILL);
        waitpid(rank.child.pid, nullptr, 0);
      }
      rank.out.close();
      rank.err.close();
    }
  }

  LaunchResult run() {
    port_ = plan_.master_port != 0 ? plan_.master_port : free_port();
    for (int local = 0; local < plan_.nproc; ++local) start(local);
    while (running() || open()) {
      pass_output();
      for (Rank& rank : ranks_) reap(rank);
      if (!running()) drain_until_ = drain_until_.value_or(Clock::now() + kGrace);
      if (drain_until_ && Clock::now() > *drain_until_) break;  // a grandchild left the group
      press();
    }
    if (interrupt_code_ != 0) result_.code = interrupt_code_;
    return result_;
  }

 private:
  void start(int local) {
    const int number = plan_.node_rank * plan_.nproc + local;
    std::map<std::string, std::string> variables = plan_.variables;
    const int world = plan_.nproc * plan_.nnodes;
    variables["RANK"] = std::to_string(number);
    variables["WORLD_SIZE"] = std::to_string(world);
    variables["LOCAL_RANK"] = std::to_string(local);
    variables["LOCAL_WORLD_SIZE"] = std::to_string(plan_.nproc);
    variables["GROUP_RANK"] = std::to_string(plan_.node_rank);
    variables["MASTER_ADDR"] = plan_.master_addr;
    variables["MASTER_PORT"] = std::to_string(port_);
    variables["TORCHELASTIC_USE_AGENT_STORE"] = "";
    // As torchrun does: many ranks that each take every core only wait for each other.
    if (plan_.nproc > 1 && std::getenv("OMP_NUM_THREADS") == nullptr)
      variables["OMP_NUM_THREADS"] = "1";
    // A broken connection is our message, not a stack trace of the library.
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) variables["TORCH_CPP_LOG_LEVEL"] = "ERROR";
    std::vector<std::string> command = plan_.command;
    if (command.front() == "dsv32-verify") command.front() = own_program();
    Rank& rank = ranks_.emplace_back();
    try {
      rank.child = start_program(command, variables);
    } catch (...) {
      ranks_.pop_back();
      throw;
    }
    rank.number = number;
    rank.out = OutputLines(rank.child.out);
    rank.err = OutputLines(rank.child.err);
    guardian_.watch(rank.child.pid);
  }

  bool running() const {
    return std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& r) { return !r.status; });
  }
  bool open() const {
    return std::any_of(ranks_.begin(), ranks_.end(),
                       [](const Rank& r) { return r.out.file() >= 0 || r.err.file() >= 0; });
  }

  void pass_output() {
    std::vector<pollfd> files;
    for (const Rank& rank : ranks_)
      for (const int file : {rank.out.file(), rank.err.file()})
        files.push_back({.fd = file, .events = POLLIN, .revents = 0});
    if (poll(files.data(), files.size(), static_cast<int>(kPoll.count())) <= 0) return;
    for (size_t i = 0; i < ranks_.size(); ++i) {
      Rank& rank = ranks_[i];
      if (files[2 * i].revents != 0)
        rank.out.read_some([&](const std::string& line) { say(rank.number, false, line); });
      if (files[2 * i + 1].revents != 0)
        rank.err.read_some([&](const std::string& line) { say(rank.number, true, line); });
    }
  }

  void say(int rank, bool is_error, const std::string& line) const {
    if (plan_.sink) return plan_.sink(rank, is_error, line);
    if (is_error) {
      std::cerr << "[rank " + std::to_string(rank) + "] " + line + "\n" << std::flush;
    } else {
      std::cout << line << "\n" << std::flush;
    }
  }

  void reap(Rank& rank) {
    siginfo_t info = {};
    if (rank.status) return;
    const id_t pid = static_cast<id_t>(rank.child.pid);
    if (waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return;
    // What it started goes with it, while its number cannot be anybody else's yet.
    signal_group(rank.child.pid, SIGKILL);
    int status = 0;
    waitpid(rank.child.pid, &status, 0);
    guardian_.watch(-rank.child.pid);
    rank.status = status;
    if (code_of(status) == 0) return;
    if (result_.first < 0) note_first(rank);
    // What happens to a rank once we end them says nothing.
    if (!terminated_) result_.code = worse(result_.code, code_of(status));
  }

  void note_first(const Rank& rank) {
    result_.first = rank.number;
    result_.failure = fate_of(*rank.status);
    failed_at_ = Clock::now();
    if (interrupt_code_ == 0 && !plan_.sink) {
      log_error("launch: rank " + std::to_string(rank.number) + " " + result_.failure +
                (running() ? "; the others are ended" : ""));
    }
  }

  /// Ends the ranks that are left, once one has failed or the user wants it.
  void press() {
    if (interrupt_code_ == 0 && plan_.interrupted && plan_.interrupted()) {
      interrupt_code_ = static_cast<int>(ExitCode::interrupted);
      failed_at_ = Clock::now() - kFarewell;
    }
    if (!failed_at_ || !running()) return;
    const auto late = Clock::now() - *failed_at_;
    if (late > kFarewell && !terminated_) {
      terminated_ = true;
      signal_all(SIGTERM);
    }
    if (late > kFarewell + kGrace) signal_all(SIGKILL);
  }

  void signal_all(int number) const {
    for (const Rank& rank : ranks_)
      if (!rank.status) signal_group(rank.child.pid, number);
  }

  const LaunchPlan& plan_;
  Guardian guardian_;
  int port_ = 0;
  std::vector<Rank> ranks_;
  LaunchResult result_;
  int interrupt_code_ = 0;
  bool terminated_ = false;
  std::optional<Clock::time_point> failed_at_, drain_until_;
};

}  // namespace

LaunchResult launch(const LaunchPlan& plan) { return Launcher(plan).run(); }

int free_port() {
  const int file = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  sockaddr* generic = reinterpret_cast<sockaddr*>(&address);
  const bool good =
      file >= 0 && bind(file, generic, size) == 0 && getsockname(file, generic, &size) == 0;
  const int error = errno;
  if (file >= 0) close(file);
  if (good) return ntohs(address.sin_port);
  throw Error(ExitCode::environment, {.where = "launch",
                                      .what = "a free port",
                                      .expected = "one on the loopback address",
                                      .got = std::strerror(error)});
}

std::string own_program() {
  namespace fs = std::filesystem;
  if (const char* named = std::getenv("DSV32_VERIFY")) return named;
  const fs::path self = fs::read_symlink("/proc/self/exe");
  const std::string name = "dsv32-verify";
  for (const fs::path& path :
       {self, self.parent_path() / name, self.parent_path().parent_path() / name})
    if (path.filename() == name && fs::exists(path)) return path.string();
  return name;
}

}  // namespace dsv32::harness
