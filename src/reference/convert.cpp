#include "src/reference/convert.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <array>

#include "src/bridge/parallel.h"
#include "src/model/philox.h"

namespace dsv32::reference {

torch::Tensor perturbed(const torch::Tensor& value, double size, uint64_t seed,
                        const std::string& name) {
  constexpr int64_t kLarge = 1 << 16;
  if (value.numel() >= kLarge) return perturbed_by_counter(value, size, seed, name);
  auto generator = torch::make_generator<torch::CPUGeneratorImpl>(seed ^ fnv1a64(name));
  const torch::Tensor signs =
      torch::randint(0, 2, value.sizes(), generator, torch::kInt8).to(value.device());
  return torch::where(signs == 1, value * (1 + size), value * (1 - size));
}

namespace {

constexpr int64_t kBlocks = 64;  // counter blocks at a time
constexpr int64_t kSigns = 64;   // of a word
constexpr int64_t kWords = 4 * kBlocks;

/// moved = values (1 + size) where the word's bit is 1, else values (1 - size).
template <typename Real>
void scale_by_bits(uint64_t word, double size, const Real* values, Real* moved, int64_t count) {
  const Real up = static_cast<Real>(1 + size), down = static_cast<Real>(1 - size);
  for (int64_t i = 0; i < count; ++i) moved[i] = values[i] * (((word >> i) & 1) != 0 ? up : down);
}

template <typename Real>
void scale_by_counter(const std::array<uint64_t, 2>& key, double size, const Real* values,
                      Real* moved, int64_t count) {
  constexpr int64_t kStep = kWords * kSigns;
  const int64_t steps = (count + kStep - 1) / kStep;
  parallel_for(steps, 16, [&](int64_t first, int64_t last) {
    std::array<uint64_t, kWords> words = {};
    for (int64_t step = first; step < last; ++step) {
      philox4x64_blocks(key, 1 + static_cast<uint64_t>(step * kBlocks), kBlocks, words.data());
      for (int64_t w = 0; w < kWords; ++w) {
        const int64_t at = step * kStep + w * kSigns;
        if (at >= count) return;
        scale_by_bits(words[w], size, values + at, moved + at, std::min(kSigns, count - at));
      }
    }
  });
}

}  // namespace

torch::Tensor perturbed_by_counter(const torch::Tensor& value, double size, uint64_t seed,
                                   const std::string& name) {
  const torch::Tensor values = value.to(torch::kCPU).contiguous();
  const torch::Tensor moved = torch::empty_like(values);
  const std::array<uint64_t, 2> key = {seed, fnv1a64("probe." + name)};
  AT_DISPATCH_FLOATING_TYPES(moved.scalar_type(), "perturbed_by_counter", [&] {
    scale_by_counter(key, size, values.const_data_ptr<scalar_t>(),
                     moved.mutable_data_ptr<scalar_t>(), moved.numel());
  });
  return moved.to(value.device());
}

}  // namespace dsv32::reference
