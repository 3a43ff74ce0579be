#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace dsv32::harness {

/// The ranks of one machine, and what they run. Every rank gets torchrun's variables.
struct LaunchPlan {
  int nproc = 1;
  int nnodes = 1;
  int node_rank = 0;
  std::string master_addr = "127.0.0.1";
  int master_port = 0;                                // 0: a free one
  std::vector<std::string> command;                   // a program and its arguments
  std::map<std::string, std::string> variables = {};  // further ones for every rank
  std::function<bool()> interrupted = {};
  /// Gets whole lines of the ranks' output; empty: they go to our own stdout and stderr.
  std::function<void(int rank, bool is_error, const std::string& line)> sink = {};
};

struct LaunchResult {
  int code = 0;         // the launcher's exit code
  int first = -1;       // the rank that failed first; -1: none did
  std::string failure;  // what became of it: "was killed by signal 9 (Killed)"
};

inline constexpr int kMostRanks = 256;  // of one machine

/// Runs the ranks to their end. When one fails the others have a moment to say which rank they
/// miss, then they are ended, with everything that they started. No process is left behind, also
/// when this one is killed. Throws Error (usage) when the program cannot be started.
LaunchResult launch(const LaunchPlan& plan);

/// A TCP port that was free a moment ago.
int free_port();

/// The program dsv32-verify: this one, or the one next to this test.
std::string own_program();

}  // namespace dsv32::harness
