#pragma once

#include <functional>
#include <optional>
#include <string>

namespace dsv32::training {

/// Which rank this process is, and where the ranks meet.
struct RankEnvironment {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;  // on its machine: the device index
  std::string master_addr = "127.0.0.1";
  int master_port = 0;
  bool agent_store = false;  // torchrun's agent holds the store; else rank 0 does
  std::string source;        // "torchrun", "SLURM", "Open MPI"
};

/// Value of an environment variable; empty text counts as not set.
using Lookup = std::function<std::optional<std::string>(const char* name)>;
std::optional<std::string> process_variable(const char* name);

/// The world that a launcher has set up, by torchrun's variables (RANK WORLD_SIZE LOCAL_RANK
/// MASTER_ADDR MASTER_PORT; `dsv32-verify launch` sets them too), SLURM's, or Open MPI's; nullopt
/// without a launcher. Throws Error (environment) where variables are missing or contradict each
/// other.
std::optional<RankEnvironment> read_rank_environment(const Lookup& lookup = process_variable);

}  // namespace dsv32::training
