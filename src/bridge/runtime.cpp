#include "src/bridge/runtime.h"

#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <torch/cuda.h>
#include <torch/version.h>

#include <deque>
#include <mutex>
#include <unordered_map>

#include "src/bridge/libtorch.h"
#include "src/model/errors.h"

namespace dsv32 {

std::string torch_version() { return TORCH_VERSION; }

static std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string arithmetic_library() {
  std::string text = at::hasMKL() ? first_line(at::get_mkl_version()) : "no MKL";
  if (at::hasMKLDNN()) text += "; " + first_line(at::get_mkldnn_version());
  return text + "; " + at::get_cpu_capability();
}

std::string resolve_device(const std::string& asked) {
  const bool present = torch::cuda::is_available();
  if (asked == "auto") return present ? "cuda" : "cpu";
  if (asked.rfind("cuda", 0) == 0 && !present) {
    throw Error(ExitCode::environment, {.where = "--device",
                                        .what = "device",
                                        .expected = "a CUDA device",
                                        .got = "none",
                                        .hint = "use --device cpu"});
  }
  return asked;
}

void set_threads(int threads) { torch::set_num_threads(threads); }

namespace {

/// Large blocks in mappings of their own, made of huge pages: those of a heap stay with the
/// process, and lie between others when they are free. A few free ones wait for the next of their
/// size: the system takes as long to clear a page as an op to fill it.
class LargeBlocks : public c10::Allocator {
 public:
  /// As long as any tensor.
  static LargeBlocks& only() {
    static auto* const made = new LargeBlocks(c10::GetCPUAllocator());
    return *made;
  }

  c10::DataPtr allocate(size_t size) override {
    if (size < kStep) return others_->allocate(size);
    const std::scoped_lock lock(mutex_);
    void* memory = block_of((size + kStep - 1) / kStep * kStep);
    if (memory == nullptr) return others_->allocate(size);  // which says that there is none
    return {memory, memory, give_back, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return give_back; }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }

 private:
  static constexpr size_t kStep = size_t{32} << 20;        // sizes are multiples of it
  static constexpr size_t kMostWaiting = size_t{2} << 30;  // all together

  explicit LargeBlocks(c10::Allocator* others) : others_(others) {}

  static void give_back(void* memory) {
    LargeBlocks& blocks = only();
    const std::scoped_lock lock(blocks.mutex_);
    const auto found = blocks.sizes_.find(memory);
    if (found == blocks.sizes_.end()) return blocks.others_->raw_deleter()(memory);
    blocks.make_place(found->second);
    blocks.waiting_.push_back(memory);
    blocks.waiting_bytes_ += found->second;
    if (found->second > kMostWaiting) blocks.make_place(0);
  }

  void* block_of(size_t size) {
    for (auto at = waiting_.begin(); at != waiting_.end(); ++at)
      if (sizes_.at(*at) == size) {
        void* memory = *at;
        waiting_.erase(at);
        waiting_bytes_ -= size;
        return memory;
      }
    make_place(size);
    void* memory =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    ::madvise(memory, size, MADV_HUGEPAGE);
    sizes_[memory] = size;
    return memory;
  }

  /// Until as much may wait besides, those that have waited longest go.
  void make_place(size_t size) {
    while (!waiting_.empty() && waiting_bytes_ + size > kMostWaiting) {
      void* memory = waiting_.front();
      waiting_.pop_front();
      const size_t bytes = sizes_.at(memory);
      waiting_bytes_ -= bytes;
      sizes_.erase(memory);
      ::munmap(memory, bytes);
    }
  }

  c10::Allocator* others_;
  std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;  // of every block
  std::deque<void*> waiting_;
  size_t waiting_bytes_ = 0;
};

}  // namespace

void return_large_blocks() {
  constexpr uint8_t kPriority = 1;  // above what torch starts with
  c10::SetCPUAllocator(&LargeBlocks::only(), kPriority);
}

}  // namespace dsv32
