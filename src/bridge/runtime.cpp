#include "src/bridge/runtime.h"

#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <torch/torch.h>

#include <mutex>
#include <unordered_map>

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

/// Large blocks in mappings of their own, made of huge pages: those of the heap stay with the
/// process, and lie between others when they are free.
class LargeBlocks : public c10::Allocator {
 public:
  /// As long as any tensor.
  static LargeBlocks& only() {
    static auto* const made = new LargeBlocks(c10::GetCPUAllocator());
    return *made;
  }

  c10::DataPtr allocate(size_t size) override {
    constexpr size_t kLarge = size_t{32} << 20;
    if (size < kLarge) return others_->allocate(size);
    void* memory =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return others_->allocate(size);  // which says that there is none
    ::madvise(memory, size, MADV_HUGEPAGE);
    const std::scoped_lock lock(mutex_);
    sizes_[memory] = size;
    return {memory, memory, give_back, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return give_back; }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }

 private:
  explicit LargeBlocks(c10::Allocator* others) : others_(others) {}

  static void give_back(void* memory) {
    LargeBlocks& blocks = only();
    const size_t size = blocks.forget(memory);
    if (size == 0) return blocks.others_->raw_deleter()(memory);
    ::munmap(memory, size);
  }

  /// Its size; 0: it is none of ours.
  size_t forget(void* memory) {
    const std::scoped_lock lock(mutex_);
    const auto found = sizes_.find(memory);
    if (found == sizes_.end()) return 0;
    const size_t size = found->second;
    sizes_.erase(found);
    return size;
  }

  c10::Allocator* others_;
  std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;
};

}  // namespace

void return_large_blocks() {
  constexpr uint8_t kPriority = 1;  // above what torch starts with
  c10::SetCPUAllocator(&LargeBlocks::only(), kPriority);
}

}  // namespace dsv32
