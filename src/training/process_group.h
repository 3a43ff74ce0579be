#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "src/training/rank_env.h"

namespace dsv32::training {

/// ProcessGroupGloo on the CPU.
c10::intrusive_ptr<c10d::Backend> make_gloo(const c10::intrusive_ptr<c10d::Store>& store,
                                            const RankEnvironment& env,
                                            std::chrono::milliseconds timeout);

/// ProcessGroupNCCL on device `local_rank`. Throws Error (environment) in a build without CUDA.
c10::intrusive_ptr<c10d::Backend> make_nccl(const c10::intrusive_ptr<c10d::Store>& store,
                                            const RankEnvironment& env,
                                            std::chrono::milliseconds timeout);

}  // namespace dsv32::training
