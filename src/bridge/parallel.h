#pragma once

#include <cstdint>
#include <functional>

namespace dsv32 {

/// Calls body(begin, end) over [0, count) on ATen's threads, each call with `grain` items or more.
/// Results must not depend on how the range is split: the thread count changes it.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace dsv32
