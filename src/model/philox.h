#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace dsv32 {

/// FNV-1a 64 over UTF-8 bytes.
uint64_t fnv1a64(std::string_view text);

/// Philox4x64-10 (Random123; the same function as numpy.random.Philox), one counter block.
std::array<uint64_t, 4> philox4x64(std::array<uint64_t, 4> counter, std::array<uint64_t, 2> key);

/// The counter blocks {first, 0, 0, 0}, {first + 1, 0, 0, 0}, ... in the CPU's widest vectors.
/// words: [count,4].
void philox4x64_blocks(std::array<uint64_t, 2> key, uint64_t first, int64_t count, uint64_t* words);

/// The stream of one name: block b (1, 2, ...) in counter word 0. docs/formats.md 1.
class PhiloxStream {
 public:
  PhiloxStream(uint64_t seed, std::string_view name) : key_{seed, fnv1a64(name)} {}
  std::array<uint64_t, 4> block(uint64_t b) const { return philox4x64({b, 0, 0, 0}, key_); }
  /// 16-bit lane i (low bits first): 16 lanes a block.
  uint16_t lane16(uint64_t i) const;
  /// 32-bit lane i (low bits first): 8 lanes a block.
  uint32_t lane32(uint64_t i) const;

 private:
  std::array<uint64_t, 2> key_;
};

}  // namespace dsv32
