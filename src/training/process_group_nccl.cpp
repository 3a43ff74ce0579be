#include "src/training/process_group.h"

#ifdef USE_C10D_NCCL
#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "src/model/errors.h"

namespace dsv32::training {

#ifdef USE_C10D_NCCL
c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                            const RankEnvironment& env,
                                            std::chrono::milliseconds timeout) {
  if (env.local_rank >= c10::cuda::device_count()) {
    throw Error(ExitCode::environment,
                {.where = "rank " + std::to_string(env.rank),
                 .what = "no device of its own",
                 .expected = "one device for each rank of a machine",
                 .got = "local rank " + std::to_string(env.local_rank) + " with " +
                        std::to_string(c10::cuda::device_count()) + " devices"});
  }
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(env.local_rank));
  // A wait that throws in this thread, where the culprit is named, in place of a watchdog's abort.
  setenv("TORCH_NCCL_BLOCKING_WAIT", "1", 0);
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(store, env.rank, env.world_size, options);
}
#else
c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>&,
                                            const RankEnvironment& env, std::chrono::milliseconds) {
  throw Error(ExitCode::environment, {.where = "rank " + std::to_string(env.rank),
                                      .what = "device cuda",
                                      .expected = "a build with CUDA (DSV32_CUDA=ON)",
                                      .got = "a build for the CPU alone"});
}
#endif

}  // namespace dsv32::training
