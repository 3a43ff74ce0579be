#include "harness/cases/threads.h"

#include <algorithm>
#include <thread>

namespace dsv32::harness {

int threads_for(const Case& c) {
  /// Multiplications of a layer.
  constexpr int64_t kWorthThreads = int64_t{1} << 27;
  const int64_t work =
      c.B * c.S * c.config.hidden_size * (c.config.intermediate_size + c.config.hidden_size);
  return work < kWorthThreads ? 1
                              : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace dsv32::harness
