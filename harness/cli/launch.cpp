#include "harness/launch/launch.h"

#include <atomic>
#include <csignal>

#include "harness/cli/commands.h"

namespace dsv32::harness {
namespace {

std::atomic<int> g_number{0};

extern "C" void note_signal(int number) { g_number = number; }

}  // namespace

ExitCode launch_command(const Options& options) {
  LaunchPlan plan{.nproc = static_cast<int>(options.nproc),
                  .nnodes = static_cast<int>(options.nnodes),
                  .node_rank = static_cast<int>(options.node_rank),
                  .master_port = static_cast<int>(options.master_port),
                  .command = options.arguments};
  if (options.master_addr) plan.master_addr = *options.master_addr;
  if (options.timeout) plan.variables["DSV32_RANK_TIMEOUT"] = std::to_string(*options.timeout);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) std::signal(number, note_signal);
  plan.interrupted = [] { return g_number != 0; };
  const LaunchResult result = launch(plan);
  constexpr int kSignalExit = 128;  // the shell's convention
  return static_cast<ExitCode>(g_number != 0 ? kSignalExit + g_number : result.code);
}

}  // namespace dsv32::harness
