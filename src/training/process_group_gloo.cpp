#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include "src/training/process_group.h"

namespace dsv32::training {
namespace {

std::shared_ptr<gloo::transport::Device> make_device(const RankEnvironment& env) {
  using Group = c10d::ProcessGroupGloo;
  if (const auto interface = process_variable("GLOO_SOCKET_IFNAME"))
    return Group::createDeviceForInterface(*interface);
  // Ranks that meet on the loopback address are all on this machine, whatever its name resolves to.
  const bool local = env.master_addr == "localhost" || env.master_addr.rfind("127.", 0) == 0;
  return local ? Group::createDeviceForHostname("127.0.0.1") : Group::createDefaultDevice();
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_gloo(const c10::intrusive_ptr<c10d::Store>& store,
                                            const RankEnvironment& env,
                                            std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices.push_back(make_device(env));
  options->threads = 1;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, env.rank, env.world_size, options);
}

}  // namespace dsv32::training
