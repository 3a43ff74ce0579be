#include <dirent.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "harness/launch/launch.h"
#include "harness/training/sharded/run.h"
#include "src/bridge/runtime.h"
#include "src/log/log.h"
#include "src/model/errors.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

/// A folder of this process's own, gone with the object.
class Scratch {
 public:
  Scratch() {
    std::string name = (fs::temp_directory_path() / "dsv32-sharded-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      throw Error(ExitCode::environment, {.where = name,
                                          .what = "a temporary folder",
                                          .expected = "to be made",
                                          .got = "a refusal"});
    }
    path_ = name;
  }
  /// By hand: libtorch exports a std::filesystem of its own, whose remove_all crashes here.
  ~Scratch() {
    if (DIR* folder = opendir(path_.c_str())) {
      while (const dirent* entry = readdir(folder)) unlinkat(dirfd(folder), entry->d_name, 0);
      closedir(folder);
    }
    rmdir(path_.c_str());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// Where rank 0 leaves the run: told by the launching process, not by a user.
constexpr const char* kResult = "DSV32_SHARDED_RESULT";

}  // namespace

ShardedRun launch_world(const ShardedPlan& plan, const RunSettings& settings) {
  const Scratch scratch;
  const fs::path result = scratch.path() / "run.safetensors";
  std::string said;  // by the ranks, for the error
  LaunchPlan launched{.nproc = plan.ranks,
                      .command = {own_program(), "sharded-rank"},
                      .variables = {{kResult, result.string()}},
                      .interrupted = settings.interrupted};
  for (const std::string& word : plan.words()) launched.command.push_back(word);
  launched.sink = [&](int rank, bool, const std::string& line) {
    said += "\n  [rank " + std::to_string(rank) + "] " + line;
  };
  const LaunchResult done = launch(launched);
  if (done.code == 0) return read_sharded_run(result);
  throw Error(done.code == static_cast<int>(ExitCode::interrupted) ? ExitCode::interrupted
                                                                   : ExitCode::environment,
              {.where = "a world of " + describe(plan),
               .what = "it did not come to its end",
               .expected = "every rank to finish",
               .got = "rank " + std::to_string(done.first) + " " + done.failure,
               .hint = "what the ranks said:" + said});
}

ExitCode sharded_rank_command(const std::vector<std::string>& words) {
  const ShardedPlan plan = ShardedPlan::from_words(words);
  const auto env = training::read_rank_environment();
  if (!env) {
    throw Error(ExitCode::environment, {.where = "sharded-rank",
                                        .what = "rank variables",
                                        .expected = "those of torchrun, SLURM or Open MPI",
                                        .got = "none",
                                        .hint = "start it with dsv32-verify launch"});
  }
  set_threads(1);
  training::World world(
      *env, {.device = plan.device, .timeout = rank_timeout(), .alike = sharded_digests(plan)});
  try {
    const ShardedRun run = run_rank(world, plan);
    world.finish();
    const auto result = training::process_variable(kResult);
    if (world.rank() == 0 && result) write_sharded_run(*result, run);
  } catch (const std::exception& error) {
    world.fail(error.what());
    throw;
  }
  return ExitCode::ok;
}

}  // namespace dsv32::harness
