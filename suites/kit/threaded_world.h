#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "harness/launch/launch.h"
#include "src/training/collective.h"

namespace dsv32::suites {

/// Runs `work` on every rank of a world of `size` threads in this process, over real sockets.
/// Rethrows the first error of a rank.
inline void in_world(int size, const std::function<void(training::World&)>& work) {
  const int port = harness::free_port();
  std::vector<std::exception_ptr> errors(size);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < size; ++rank) {
    ranks.emplace_back([&, rank] {
      try {
        training::RankEnvironment env{.rank = rank, .world_size = size, .local_rank = rank};
        env.master_port = port;
        training::World world(env, {.timeout = 30});
        work(world);
        world.finish();
      } catch (...) {
        errors[rank] = std::current_exception();
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace dsv32::suites
