#pragma once

#include <cstdint>

namespace dsv32::optimized::simt {

/// Seeds the random order of blocks and threads of the next launches of this host thread. The n-th
/// launch after this call has a schedule of its own that depends on `seed` and n alone.
void set_schedule_seed(uint64_t seed);

}  // namespace dsv32::optimized::simt
