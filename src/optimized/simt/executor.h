#pragma once

/// The SIMT executor: runs a grid on the calling host thread, block after block in random order.
/// The threads of a block are fibers; a thread runs until it must wait (barrier, warp operation) or
/// ends, then a random ready one goes on. What CUDA leaves undefined is a Fault where it can be
/// seen: a barrier or warp operation that not all of its threads reach, shared memory out of range.

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "src/optimized/simt/schedule.h"

/// CUDA's names at CUDA's place, the global namespace.
struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned x, y, z;
};

namespace dsv32::optimized::simt {

/// A kernel did what CUDA does not define. The text names kernel, block, thread and source line.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct LaunchShape {
  const char* name;  // of the kernel, for error texts
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

struct BuiltIns {
  uint3 thread;
  uint3 block;
  dim3 grid_shape;
  dim3 block_shape;
};

/// threadIdx and its kin of the thread that runs now.
extern thread_local constinit BuiltIns built_ins;

/// An operation in the kernel's source.
struct Site {
  const char* operation;
  const char* file;
  int line;
};

/// Runs `entry(argument)` once per thread of the grid. Throws Fault, or what a thread threw.
void run_grid(const LaunchShape& shape, void (*entry)(const void*), const void* argument);

/// Below: called by a running thread only.

/// Waits for every thread of the block that has not ended.
void block_barrier(const Site& site);

/// A warp operation: waits for all lanes of `mask`, each of which brings a payload. The last to
/// come runs `complete(payloads, mask)`, which reads and writes the payloads of the lanes in
/// `mask`.
using CompleteWarpOperation = void (*)(void* const* payloads, unsigned mask);
void warp_operation(unsigned mask, void* payload, CompleteWarpOperation complete, const Site& site);

/// Lets other threads go first.
void yield_thread();

/// The block's shared memory; Fault when [offset, offset + bytes) is not inside or misaligned.
void* shared_bytes(size_t offset, size_t bytes, size_t alignment);

/// Asynchronous copies of this thread. The destination holds garbage until the wait.
void async_copy(void* shared, const void* global, unsigned bytes, bool valid, const Site& site);
void async_commit();
void async_wait(unsigned pending_groups);

/// Throws a Fault that names the running kernel, block and thread.
[[noreturn]] void fail(const Site& site, const char* what);

}  // namespace dsv32::optimized::simt
