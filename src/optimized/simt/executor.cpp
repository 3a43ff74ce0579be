#include "src/optimized/simt/executor.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <exception>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

// DSV32_TELL_ASAN: this file is not instrumented itself, the kernels are.
#if defined(__SANITIZE_ADDRESS__) || defined(DSV32_TELL_ASAN)
#define DSV32_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace dsv32::optimized::simt {

thread_local constinit BuiltIns built_ins{};

namespace {

namespace context = boost::context::detail;

#if defined(DSV32_ASAN)
constexpr bool kAddressSanitizer = true;
constexpr size_t kStackBytes = size_t{256} << 10;
void poison(void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
void unpoison(void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }
void start_switch(void** save, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(save, bottom, bytes);
}
void finish_switch(void* saved, const void** bottom, size_t* bytes) {
  __sanitizer_finish_switch_fiber(saved, bottom, bytes);
}
#else
constexpr bool kAddressSanitizer = false;
constexpr size_t kStackBytes = size_t{64} << 10;
void poison(void*, size_t) {}
void unpoison(void*, size_t) {}
void start_switch(void**, const void*, size_t) {}
void finish_switch(void*, const void**, size_t*) {}
#endif

// What a Hopper GPU takes.
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxBlockDepth = 64;
constexpr unsigned kMaxGridX = 0x7fffffffu;
constexpr unsigned kMaxGridYZ = 65535;
constexpr size_t kMaxSharedBytes = 232448;

constexpr unsigned kLanes = 32;
constexpr size_t kPageBytes = 4096;
// Repeated, a NaN as float32, float64 and bf16, and nonsense as an integer.
constexpr uint16_t kGarbage = 0xffc5;
constexpr size_t kSharedGuardBytes = 1024;

void fill_with_garbage(void* begin, size_t bytes) {
  auto* byte = static_cast<unsigned char*>(begin);
  size_t i = 0;
  for (; i + sizeof(kGarbage) <= bytes; i += sizeof(kGarbage)) {
    std::memcpy(byte + i, &kGarbage, sizeof(kGarbage));
  }
  if (i < bytes) byte[i] = kGarbage & 0xff;
}

std::string text(const Site& site) {
  std::ostringstream out;
  out << site.operation << " at " << site.file << ":" << site.line;
  return out.str();
}

std::string text(const char* name, unsigned x, unsigned y, unsigned z) {
  std::ostringstream out;
  out << name << " (" << x << "," << y << "," << z << ")";
  return out.str();
}

/// splitmix64: small, and every seed is a good one.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// Uniform below `bound` (< 2^32), but for a bias of bound / 2^32.
  size_t below(size_t bound) { return ((next() >> 32) * bound) >> 32; }

 private:
  uint64_t state_;
};

/// Stacks of the fibers, with an unmapped page below each; kept from launch to launch.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() {
    for (char* stack : stacks_) munmap(stack, kStackBytes);
  }

  void reserve(size_t count) {
    while (stacks_.size() < count) {
      void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
      if (stack == MAP_FAILED) throw std::bad_alloc();
      mprotect(stack, kPageBytes, PROT_NONE);
      stacks_.push_back(static_cast<char*>(stack));
    }
  }
  char* bottom(size_t i) const { return stacks_[i] + kPageBytes; }
  /// The tops are spread over a page: equal offsets would share a few cache sets.
  size_t bytes(size_t i) const { return kStackBytes - kPageBytes - i % 32 * 128; }
  /// Frees the memory from the red zones of frames that were left without returning.
  void clean(size_t i) const { unpoison(bottom(i), kStackBytes - kPageBytes); }

 private:
  std::vector<char*> stacks_;
};

/// The block's shared memory between two guards.
class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { unpoison(storage_.data(), storage_.size()); }

  void reset(size_t bytes) {
    const size_t whole = bytes + 2 * kSharedGuardBytes + kAlignment;
    unpoison(storage_.data(), storage_.size());
    if (storage_.size() < whole) storage_ = std::vector<unsigned char>(whole);
    const auto start = reinterpret_cast<uintptr_t>(storage_.data()) + kSharedGuardBytes;
    base_ = reinterpret_cast<unsigned char*>((start + kAlignment - 1) / kAlignment * kAlignment);
    bytes_ = bytes;
    fill_with_garbage(base_ - kSharedGuardBytes, bytes + 2 * kSharedGuardBytes);
    poison(base_ - kSharedGuardBytes, kSharedGuardBytes);
    poison(base_ + bytes, kSharedGuardBytes);
  }
  unsigned char* base() const { return base_; }
  size_t bytes() const { return bytes_; }
  bool contains(const void* begin, size_t bytes) const {
    const auto* byte = static_cast<const unsigned char*>(begin);
    return byte >= base_ && byte + bytes <= base_ + bytes_;
  }
  /// False when a thread wrote beside the memory. AddressSanitizer stops the write itself.
  bool guards_are_whole() const {
    if (kAddressSanitizer) return true;
    const auto clean = [](const unsigned char* guard, size_t phase) {
      for (size_t i = 0; i < kSharedGuardBytes; ++i) {
        const unsigned want = (i + phase) % 2 == 0 ? kGarbage & 0xff : kGarbage >> 8;
        if (guard[i] != want) return false;
      }
      return true;
    };
    return clean(base_ - kSharedGuardBytes, 0) && clean(base_ + bytes_, bytes_ % 2);
  }

 private:
  static constexpr size_t kAlignment = 128;
  std::vector<unsigned char> storage_;
  unsigned char* base_ = nullptr;
  size_t bytes_ = 0;
};

struct AsyncCopy {
  void* shared;
  const void* global;
  unsigned bytes;
  bool valid;
  unsigned group;
};

enum class State { ready, at_barrier, in_warp_operation, ended };

struct Thread {
  context::fcontext_t context = nullptr;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  uint3 index;
  unsigned linear = 0;
  State state = State::ready;
  Site site{};
  std::vector<AsyncCopy> copies;
  unsigned async_groups = 0;
};

/// A warp operation that some of its lanes have reached.
struct WarpOperation {
  unsigned mask;
  unsigned arrived;
  Site site;
  void* payloads[kLanes];
};

class Executor {
 public:
  void seed(uint64_t value) {
    seed_ = value;
    launches_ = 0;
  }

  void run(const LaunchShape& shape, void (*entry)(const void*), const void* argument);

  void barrier(const Site& site);
  void warp_operation(unsigned mask, void* payload, CompleteWarpOperation complete,
                      const Site& site);
  void yield();
  [[noreturn]] void fail(const Thread& thread, const std::string& what);

  Thread& current() { return *current_; }
  SharedMemory& shared() { return shared_; }
  Random& random() { return random_; }

  [[noreturn]] void fiber_main(context::transfer_t from);

 private:
  void run_block(uint64_t block);
  void prepare(unsigned i);
  Thread* pick();
  void switch_to(Thread& to);
  void arrived_from(context::transfer_t from);
  void wait_as(State state, const Site& site);
  void ended();
  void release_barrier();
  std::string why_stuck() const;
  std::string missing_lanes(const Thread& waiting) const;
  bool same_place(const Site& a, const Site& b) const {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0) &&
           (a.operation == b.operation || std::strcmp(a.operation, b.operation) == 0);
  }

  uint64_t seed_ = 0;
  uint64_t launches_ = 0;
  Random random_{0};
  bool running_ = false;

  const char* kernel_ = nullptr;
  void (*entry_)(const void*) = nullptr;
  const void* argument_ = nullptr;

  Stacks stacks_;
  SharedMemory shared_;
  Thread host_;
  std::vector<Thread> threads_;
  std::vector<Thread*> ready_;
  std::vector<std::vector<WarpOperation>> warps_;
  Thread* current_ = nullptr;
  unsigned live_ = 0;
  unsigned at_barrier_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  std::exception_ptr error_;
};

Executor& executor() {
  thread_local Executor instance;
  return instance;
}

void fiber_entry(context::transfer_t from) { executor().fiber_main(from); }

void check_shape(const LaunchShape& shape) {
  const auto refuse = [&](const std::string& what) {
    throw Fault(std::string(shape.name) + ": launch: " + what);
  };
  const dim3 &grid = shape.grid, &block = shape.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kMaxGridX || grid.y > kMaxGridYZ ||
      grid.z > kMaxGridYZ) {
    refuse(text("grid", grid.x, grid.y, grid.z) + " is not between 1 and (2^31-1, 65535, 65535)");
  }
  if (threads == 0 || threads > kMaxThreads || block.z > kMaxBlockDepth) {
    refuse(text("block", block.x, block.y, block.z) + " does not have 1 to 1024 threads");
  }
  if (shape.shared_bytes > kMaxSharedBytes) {
    refuse(std::to_string(shape.shared_bytes) + " bytes of shared memory, there are " +
           std::to_string(kMaxSharedBytes));
  }
}

void Executor::run(const LaunchShape& shape, void (*entry)(const void*), const void* argument) {
  check_shape(shape);
  if (running_) throw Fault(std::string(shape.name) + ": launch: inside another kernel");
  random_ = Random(seed_ * 0x100000001b3u + launches_++);
  kernel_ = shape.name;
  entry_ = entry;
  argument_ = argument;
  built_ins.grid_shape = shape.grid;
  built_ins.block_shape = shape.block;
  const unsigned count = shape.block.x * shape.block.y * shape.block.z;
  stacks_.reserve(count);
  threads_.resize(count);
  warps_.resize((count + kLanes - 1) / kLanes);

  std::vector<uint64_t> order(uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z);
  std::iota(order.begin(), order.end(), uint64_t{0});
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
  running_ = true;
  for (const uint64_t block : order) {
    shared_.reset(shape.shared_bytes);
    run_block(block);
    if (error_) break;
  }
  running_ = false;
  if (error_) {
    for (size_t i = 0; i < threads_.size(); ++i) stacks_.clean(i);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void Executor::run_block(uint64_t block) {
  const dim3& grid = built_ins.grid_shape;
  built_ins.block = {static_cast<unsigned>(block % grid.x),
                     static_cast<unsigned>(block / grid.x % grid.y),
                     static_cast<unsigned>(block / grid.x / grid.y)};
  ready_.clear();
  for (auto& operations : warps_) operations.clear();
  for (unsigned i = 0; i < threads_.size(); ++i) prepare(i);
  live_ = static_cast<unsigned>(threads_.size());
  at_barrier_ = 0;
  current_ = &host_;
  switch_to(*pick());
  if (error_) return;
  if (!shared_.guards_are_whole()) {
    error_ = std::make_exception_ptr(
        Fault(std::string(kernel_) + ": " +
              text("block", built_ins.block.x, built_ins.block.y, built_ins.block.z) +
              ": a thread wrote outside the block's " + std::to_string(shared_.bytes()) +
              " bytes of shared memory"));
  }
}

void Executor::prepare(unsigned i) {
  const dim3& shape = built_ins.block_shape;
  Thread& thread = threads_[i];
  char* top = stacks_.bottom(i) + stacks_.bytes(i);
  unpoison(top - kPageBytes, kPageBytes);
  thread.context = context::make_fcontext(top, stacks_.bytes(i), fiber_entry);
  thread.fake_stack = nullptr;
  thread.stack_bottom = stacks_.bottom(i);
  thread.stack_bytes = stacks_.bytes(i);
  thread.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
  thread.linear = i;
  thread.state = State::ready;
  thread.copies.clear();
  thread.async_groups = 0;
  ready_.push_back(&thread);
}

Thread* Executor::pick() {
  if (ready_.empty()) return nullptr;
  std::swap(ready_[random_.below(ready_.size())], ready_.back());
  Thread* thread = ready_.back();
  ready_.pop_back();
  return thread;
}

void Executor::switch_to(Thread& to) {
  Thread& from = *current_;
  current_ = &to;
  built_ins.thread = to.index;
  const bool leaves_for_good = from.state == State::ended;
  start_switch(leaves_for_good ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_bytes);
  arrived_from(context::jump_fcontext(to.context, &from));
}

/// Runs on the new stack: notes where the thread before can be taken up again.
void Executor::arrived_from(context::transfer_t from) {
  auto& before = *static_cast<Thread*>(from.data);
  before.context = from.fctx;
  const void* bottom = nullptr;
  size_t bytes = 0;
  finish_switch(current_->fake_stack, &bottom, &bytes);
  if (&before == &host_) {
    host_.stack_bottom = bottom;
    host_.stack_bytes = bytes;
  }
}

void Executor::fiber_main(context::transfer_t from) {
  arrived_from(from);
  try {
    entry_(argument_);
  } catch (...) {
    error_ = std::current_exception();
  }
  ended();
  std::terminate();  // nobody resumes a thread that has ended
}

void Executor::ended() {
  current_->state = State::ended;
  --live_;
  if (!error_ && live_ > 0 && at_barrier_ == live_) release_barrier();
  Thread* next = error_ || live_ == 0 ? nullptr : pick();
  if (next == nullptr && !error_ && live_ > 0) {
    error_ = std::make_exception_ptr(Fault(why_stuck()));
  }
  switch_to(next == nullptr ? host_ : *next);
}

void Executor::wait_as(State state, const Site& site) {
  Thread& self = *current_;
  self.state = state;
  self.site = site;
  Thread* next = pick();
  if (next == nullptr) throw Fault(why_stuck());
  switch_to(*next);
}

void Executor::barrier(const Site& site) {
  Thread& self = *current_;
  if (at_barrier_ == 0) {
    first_at_barrier_ = &self;
    self.site = site;
  } else if (!same_place(first_at_barrier_->site, site)) {
    self.site = site;
    fail(self, "divergent barrier: this thread waits in " + text(site) + ", " +
                   text("thread", first_at_barrier_->index.x, first_at_barrier_->index.y,
                        first_at_barrier_->index.z) +
                   " waits in " + text(first_at_barrier_->site));
  }
  if (++at_barrier_ == live_) {
    self.state = State::ready;
    release_barrier();
    return;
  }
  wait_as(State::at_barrier, site);
}

void Executor::release_barrier() {
  at_barrier_ = 0;
  for (Thread& thread : threads_) {
    if (thread.state != State::at_barrier) continue;
    thread.state = State::ready;
    ready_.push_back(&thread);
  }
}

void Executor::warp_operation(unsigned mask, void* payload, CompleteWarpOperation complete,
                              const Site& site) {
  Thread& self = *current_;
  const unsigned lane = self.linear % kLanes;
  if ((mask >> lane & 1u) == 0) {
    self.site = site;
    fail(self, text(site) + ": lane " + std::to_string(lane) + " is not in its own mask");
  }
  auto& operations = warps_[self.linear / kLanes];
  auto operation = std::find_if(operations.begin(), operations.end(),
                                [&](const WarpOperation& o) { return o.mask == mask; });
  if (operation == operations.end()) {
    operation = operations.insert(operations.end(), {.mask = mask, .arrived = 0, .site = site});
  } else if (!same_place(operation->site, site)) {
    self.site = site;
    fail(self, "divergent warp: this lane is in " + text(site) + ", others of its mask are in " +
                   text(operation->site));
  }
  operation->arrived |= 1u << lane;
  operation->payloads[lane] = payload;
  if (operation->arrived != mask) {
    wait_as(State::in_warp_operation, site);
    return;
  }
  complete(operation->payloads, mask);
  *operation = operations.back();
  operations.pop_back();
  const unsigned first = self.linear - lane;
  for (unsigned other = 0; other < kLanes; ++other) {
    if (other == lane || (mask >> other & 1u) == 0) continue;
    threads_[first + other].state = State::ready;
    ready_.push_back(&threads_[first + other]);
  }
}

void Executor::yield() {
  Thread& self = *current_;
  ready_.push_back(&self);
  Thread* next = pick();
  if (next != &self) switch_to(*next);
}

void Executor::fail(const Thread& thread, const std::string& what) {
  throw Fault(std::string(kernel_) + ": " +
              text("block", built_ins.block.x, built_ins.block.y, built_ins.block.z) + " " +
              text("thread", thread.index.x, thread.index.y, thread.index.z) + ": " + what);
}

/// No thread can go on: names the first that waits, and for whom.
std::string Executor::why_stuck() const {
  const auto waits_for_lanes = [](const Thread& t) { return t.state == State::in_warp_operation; };
  const auto at_barrier = [](const Thread& t) { return t.state == State::at_barrier; };
  const auto lane = std::find_if(threads_.begin(), threads_.end(), waits_for_lanes);
  const auto blocked = std::find_if(threads_.begin(), threads_.end(), at_barrier);
  const Thread& named = lane != threads_.end() ? *lane : *blocked;
  std::ostringstream out;
  out << kernel_ << ": " << text("block", built_ins.block.x, built_ins.block.y, built_ins.block.z)
      << " " << text("thread", named.index.x, named.index.y, named.index.z)
      << ": waits for ever in " << text(named.site);
  if (lane != threads_.end()) out << missing_lanes(named);
  if (blocked != threads_.end()) {
    out << "; " << at_barrier_ << " of " << live_ << " live threads reached "
        << text(blocked->site);
  }
  return out.str();
}

std::string Executor::missing_lanes(const Thread& waiting) const {
  const unsigned lane = waiting.linear % kLanes;
  const auto& operations = warps_[waiting.linear / kLanes];
  const auto operation =
      std::find_if(operations.begin(), operations.end(),
                   [&](const WarpOperation& o) { return (o.arrived >> lane & 1u) != 0; });
  std::ostringstream out;
  out << std::hex << " with mask 0x" << operation->mask << ", lanes missing: 0x"
      << (operation->mask & ~operation->arrived);
  return out.str();
}

}  // namespace

void set_schedule_seed(uint64_t seed) { executor().seed(seed); }

void run_grid(const LaunchShape& shape, void (*entry)(const void*), const void* argument) {
  executor().run(shape, entry, argument);
}

void block_barrier(const Site& site) { executor().barrier(site); }

void warp_operation(unsigned mask, void* payload, CompleteWarpOperation complete,
                    const Site& site) {
  executor().warp_operation(mask, payload, complete, site);
}

void yield_thread() { executor().yield(); }

void* shared_bytes(size_t offset, size_t bytes, size_t alignment) {
  Executor& e = executor();
  unsigned char* begin = e.shared().base() + offset;
  if (!e.shared().contains(begin, bytes)) {
    e.fail(e.current(), "shared memory [" + std::to_string(offset) + ", " +
                            std::to_string(offset + bytes) + ") asked for, the launch gave " +
                            std::to_string(e.shared().bytes()) + " bytes");
  }
  if (offset % alignment != 0) {
    e.fail(e.current(), "shared memory at offset " + std::to_string(offset) +
                            " is not aligned to " + std::to_string(alignment));
  }
  return begin;
}

void async_copy(void* shared, const void* global, unsigned bytes, bool valid, const Site& site) {
  Executor& e = executor();
  if (!e.shared().contains(shared, bytes)) fail(site, "destination outside shared memory");
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 ||
      reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail(site, "an address is not aligned to the size of the copy");
  }
  fill_with_garbage(shared, bytes);
  Thread& self = e.current();
  self.copies.push_back({shared, global, bytes, valid, self.async_groups});
}

void async_commit() { ++executor().current().async_groups; }

void async_wait(unsigned pending_groups) {
  Thread& self = executor().current();
  const auto is_done = [&](const AsyncCopy& copy) {
    return copy.group + pending_groups < self.async_groups;
  };
  for (const AsyncCopy& copy : self.copies) {
    if (!is_done(copy)) continue;
    if (copy.valid) {
      std::memcpy(copy.shared, copy.global, copy.bytes);
    } else {
      std::memset(copy.shared, 0, copy.bytes);
    }
  }
  std::erase_if(self.copies, is_done);
}

void fail(const Site& site, const char* what) {
  Executor& e = executor();
  e.fail(e.current(), text(site) + ": " + what);
}

}  // namespace dsv32::optimized::simt
