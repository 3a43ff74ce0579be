#pragma once

#include <array>
#include <cstdint>

namespace dsv32 {

/// Constants: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, table 2 (the
/// same as in Random123 and numpy).
inline constexpr int kPhiloxRounds = 10;
inline constexpr std::array<uint64_t, 2> kPhiloxFactors = {0xd2e7470ee14c6c93, 0xca5a826395121157};
inline constexpr std::array<uint64_t, 2> kPhiloxSteps = {0x9e3779b97f4a7c15,   // golden ratio
                                                         0xbb67ae8584caa73b};  // sqrt(3) - 1

/// Philox4x64-10, inline for loops that make millions of blocks.
inline std::array<uint64_t, 4> philox4x64_block(std::array<uint64_t, 4> c,
                                                std::array<uint64_t, 2> k) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const auto a = static_cast<unsigned __int128>(kPhiloxFactors[0]) * c[0];
    const auto b = static_cast<unsigned __int128>(kPhiloxFactors[1]) * c[2];
    c = {static_cast<uint64_t>(b >> 64) ^ c[1] ^ k[0], static_cast<uint64_t>(b),
         static_cast<uint64_t>(a >> 64) ^ c[3] ^ k[1], static_cast<uint64_t>(a)};
    k[0] += kPhiloxSteps[0];
    k[1] += kPhiloxSteps[1];
  }
  return c;
}

}  // namespace dsv32
