#include "src/training/rank_env.h"

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "src/model/errors.h"

namespace dsv32::training {
namespace {

constexpr int kMostRanks = 65536;
constexpr int kLastPort = 65535;
// Derived ports lie between the registered services and the kernel's ephemeral range.
constexpr int kFirstDerivedPort = 20000;
constexpr int kDerivedPorts = 12000;

[[noreturn]] void refuse(const std::string& name, std::string what, std::string expected,
                         std::string got, std::string hint = "") {
  throw Error(ExitCode::environment, {.where = "environment variable " + name,
                                      .what = std::move(what),
                                      .expected = std::move(expected),
                                      .got = std::move(got),
                                      .hint = std::move(hint)});
}

/// The variables of one launcher.
class Variables {
 public:
  Variables(const Lookup& lookup, std::string launcher)
      : lookup_(lookup), launcher_(std::move(launcher)) {}

  bool has(const char* name) const { return lookup_(name).has_value(); }

  std::string text(const char* name) const {
    const auto value = lookup_(name);
    if (!value) {
      refuse(name, "missing", "a value: the other variables of " + launcher_ + " are set",
             "nothing", "start every rank with torchrun, srun, mpirun or dsv32-verify launch");
    }
    return *value;
  }

  int number(const char* name, int first, int last) const {
    const std::string value = text(name);
    int result = 0;
    const char* end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, result);
    if (error != std::errc() || stop != end || result < first || result > last) {
      refuse(name, "not usable",
             "a number from " + std::to_string(first) + " to " + std::to_string(last),
             "\"" + value + "\"");
    }
    return result;
  }

 private:
  const Lookup& lookup_;
  std::string launcher_;
};

/// The same port on every rank of a job, from the job's name.
int derived_port(const std::string& job) {
  uint32_t hash = 2166136261u;  // FNV-1a
  for (const char c : job) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return kFirstDerivedPort + static_cast<int>(hash % kDerivedPorts);
}

/// "gpu[07-09,12],login1" -> "gpu07"; "node3,node4" -> "node3".
std::string first_host(const std::string& list) {
  const size_t end = list.find_first_of(",[");
  std::string host = list.substr(0, end);
  if (end == std::string::npos || list[end] == ',') return host;
  const size_t stop = list.find_first_of(",-]", end + 1);
  return host + list.substr(end + 1, stop - end - 1);
}

void check_ranks(const RankEnvironment& env, const char* rank_name, const char* local_name) {
  if (env.rank >= env.world_size) {
    refuse(rank_name, "contradicts the world size", "less than " + std::to_string(env.world_size),
           std::to_string(env.rank));
  }
  if (env.local_rank > env.rank) {
    refuse(local_name, "contradicts the rank", "at most " + std::to_string(env.rank),
           std::to_string(env.local_rank));
  }
}

RankEnvironment read_torchrun(const Lookup& lookup) {
  const Variables vars(lookup, "torchrun");
  RankEnvironment env{.source = "torchrun"};
  env.rank = vars.number("RANK", 0, kMostRanks - 1);
  env.world_size = vars.number("WORLD_SIZE", 1, kMostRanks);
  env.local_rank = vars.number("LOCAL_RANK", 0, kMostRanks - 1);
  env.master_addr = vars.text("MASTER_ADDR");
  env.master_port = vars.number("MASTER_PORT", 1, kLastPort);
  env.agent_store = lookup("TORCHELASTIC_USE_AGENT_STORE") == "True";
  check_ranks(env, "RANK", "LOCAL_RANK");
  if (vars.has("LOCAL_WORLD_SIZE")) {
    const int local = vars.number("LOCAL_WORLD_SIZE", 1, kMostRanks);
    if (env.local_rank >= local) {
      refuse("LOCAL_RANK", "contradicts LOCAL_WORLD_SIZE", "less than " + std::to_string(local),
             std::to_string(env.local_rank));
    }
  }
  return env;
}

/// RANK copied by a script from mpirun's variable, but wrongly. Where the sizes differ, mpirun
/// started a launcher, not the ranks.
void check_against_mpi(const Lookup& lookup, const RankEnvironment& env) {
  const auto rank = lookup("OMPI_COMM_WORLD_RANK"), size = lookup("OMPI_COMM_WORLD_SIZE");
  if (!rank || size != std::to_string(env.world_size) || rank == std::to_string(env.rank)) return;
  refuse("RANK", "contradicts OMPI_COMM_WORLD_RANK", *rank, std::to_string(env.rank));
}

void read_meeting_place(const Variables& vars, RankEnvironment& env) {
  if (vars.has("MASTER_ADDR")) env.master_addr = vars.text("MASTER_ADDR");
  if (vars.has("MASTER_PORT")) env.master_port = vars.number("MASTER_PORT", 1, kLastPort);
}

RankEnvironment read_slurm(const Lookup& lookup) {
  const Variables vars(lookup, "SLURM");
  RankEnvironment env{.source = "SLURM"};
  env.rank = vars.number("SLURM_PROCID", 0, kMostRanks - 1);
  env.world_size = vars.number(
      vars.has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS", 1, kMostRanks);
  env.local_rank = vars.number("SLURM_LOCALID", 0, kMostRanks - 1);
  env.master_addr = first_host(
      vars.text(vars.has("SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST"));
  env.master_port = derived_port(vars.text("SLURM_JOB_ID") + "." + vars.text("SLURM_STEP_ID"));
  read_meeting_place(vars, env);
  check_ranks(env, "SLURM_PROCID", "SLURM_LOCALID");
  return env;
}

RankEnvironment read_open_mpi(const Lookup& lookup) {
  const Variables vars(lookup, "Open MPI");
  RankEnvironment env{.source = "Open MPI"};
  env.rank = vars.number("OMPI_COMM_WORLD_RANK", 0, kMostRanks - 1);
  env.world_size = vars.number("OMPI_COMM_WORLD_SIZE", 1, kMostRanks);
  env.local_rank = vars.number("OMPI_COMM_WORLD_LOCAL_RANK", 0, kMostRanks - 1);
  const bool one_machine =
      vars.has("OMPI_COMM_WORLD_LOCAL_SIZE") &&
      vars.number("OMPI_COMM_WORLD_LOCAL_SIZE", 1, kMostRanks) == env.world_size;
  if (!one_machine) env.master_addr = vars.text("MASTER_ADDR");
  if (vars.has("PMIX_NAMESPACE")) env.master_port = derived_port(vars.text("PMIX_NAMESPACE"));
  read_meeting_place(vars, env);
  if (env.master_port == 0) env.master_port = vars.number("MASTER_PORT", 1, kLastPort);
  check_ranks(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK");
  return env;
}

}  // namespace

std::optional<std::string> process_variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' ? std::optional<std::string>(value) : std::nullopt;
}

std::optional<RankEnvironment> read_rank_environment(const Lookup& lookup) {
  if (lookup("RANK") || lookup("WORLD_SIZE") || lookup("LOCAL_RANK")) {
    const RankEnvironment env = read_torchrun(lookup);
    check_against_mpi(lookup, env);
    return env;
  }
  if (lookup("OMPI_COMM_WORLD_RANK") || lookup("OMPI_COMM_WORLD_SIZE"))
    return read_open_mpi(lookup);
  // A batch script or an interactive shell sees SLURM's variables too, but is no step of many
  // tasks.
  if (lookup("SLURM_PROCID") && lookup("SLURM_STEP_ID")) {
    const RankEnvironment env = read_slurm(lookup);
    if (env.world_size > 1) return env;
  }
  return std::nullopt;
}

}  // namespace dsv32::training
