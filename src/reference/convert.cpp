#include "src/reference/convert.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <array>
#include <bit>

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

/// moved = values (1 + size) where the bit of the value is 1, else values (1 - size). Bits are
/// chosen by arithmetic, so that several values fit into one instruction.
template <typename Real, typename Bits>
[[gnu::always_inline]] inline void scale_by_bits(const uint64_t* words, double size,
                                                 const Real* values, Real* moved, int64_t count) {
  constexpr int64_t kBits = 8 * sizeof(Bits);
  const Bits down = std::bit_cast<Bits>(static_cast<Real>(1 - size));
  const Bits change = down ^ std::bit_cast<Bits>(static_cast<Real>(1 + size));
  for (int64_t first = 0; first < count; first += kBits) {
    const auto bits = static_cast<Bits>(words[first / kSigns] >> (first % kSigns));
    const int64_t end = std::min(kBits, count - first);
    for (int64_t i = 0; i < end; ++i) {
      const Bits chosen = (Bits{0} - ((bits >> i) & 1)) & change;
      moved[first + i] = values[first + i] * std::bit_cast<Real>(down ^ chosen);
    }
  }
}

// Wider vectors change no bit.
__attribute__((target_clones("avx512f", "avx2", "default"))) void scale(
    const uint64_t* words, double size, const float* values, float* moved, int64_t count) {
  scale_by_bits<float, uint32_t>(words, size, values, moved, count);
}

__attribute__((target_clones("avx512f", "avx2", "default"))) void scale(
    const uint64_t* words, double size, const double* values, double* moved, int64_t count) {
  scale_by_bits<double, uint64_t>(words, size, values, moved, count);
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
      const int64_t at = step * kStep;
      scale(words.data(), size, values + at, moved + at, std::min(kStep, count - at));
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
