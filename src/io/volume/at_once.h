#pragma once

#include <cstddef>
#include <functional>

namespace dsv32::io {

/// Calls `work` with 0 to count - 1 in several threads, for what waits for a volume rather than for
/// a processor. The first exception ends it and comes out of it.
void at_once(size_t count, const std::function<void(size_t)>& work, int threads = 8);

}  // namespace dsv32::io
