#pragma once

#include <array>
#include <cstddef>
#include <numeric>

namespace dsv32::harness {

/// term(0) + ... + term(count - 1), in eight sums side by side: an addition need not wait for the
/// one before it, and several fit into one instruction.
template <typename Term>
double sum_of(size_t count, const Term& term) {
  constexpr size_t kSums = 8;
  std::array<double, kSums> sums = {};
  const size_t whole = count / kSums * kSums;
  for (size_t i = 0; i < whole; i += kSums)
    for (size_t at = 0; at < kSums; ++at) sums[at] += term(i + at);
  for (size_t i = whole; i < count; ++i) sums[i - whole] += term(i);
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace dsv32::harness
