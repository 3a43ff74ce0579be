#pragma once

/// What the kernel suites share: data, float64 oracles, the loop over schedules, the loop over
/// mutants. No torch: these suites run under AddressSanitizer and UndefinedBehaviorSanitizer.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "harness/judge/op_limits.h"
#include "src/optimized/simt/bf16.h"
#include "src/optimized/simt/mutant.h"
#include "src/optimized/simt/schedule.h"

namespace dsv32::suites {

using optimized::bf16;

/// Number of schedules that every kernel test runs.
constexpr int kSchedules = 20;

/// Seeded normal data, rounded to T.
template <typename T>
std::vector<T> random_values(int64_t count, uint64_t seed, double scale = 1, double mean = 0) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal(mean, scale);
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = optimized::from_float<T>(static_cast<float>(normal(engine)));
  return values;
}

/// A result's memory before the kernel runs: NaN, so that an element left out shows.
template <typename T>
std::vector<T> unwritten(int64_t count) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  return std::vector<T>(static_cast<size_t>(count), optimized::from_float<T>(nan));
}

template <typename T>
std::vector<double> to_double(const std::vector<T>& values) {
  std::vector<double> wide;
  for (const T value : values) wide.push_back(optimized::to_float(value));
  return wide;
}

/// A float64 result and, per element, the size that an error is measured against.
struct Oracle {
  std::vector<double> value;
  std::vector<double> scale;  // empty: the value's own magnitude

  explicit Oracle(int64_t count, bool own_scale = false)
      : value(static_cast<size_t>(count)), scale(own_scale ? static_cast<size_t>(count) : 0) {}

  double scale_of(size_t i) const { return std::abs(scale.empty() ? value[i] : scale[i]); }
};

/// "" when every element of `got` is within the limit of its row in harness/judge/op_limits.cpp;
/// else a text that names tensor, element, values and units.
template <typename T>
std::string beyond_limit(const std::string& tensor, const std::vector<T>& got,
                         const Oracle& oracle) {
  constexpr bool kIsBf16 = std::is_same_v<T, bf16>;
  const double unit = kIsBf16 ? 0x1p-8 : 0x1p-24;
  if (got.size() != oracle.value.size()) return tensor + ": wrong number of elements";
  const double limit = harness::op_limit(tensor, kIsBf16);
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = optimized::to_float(got[i]), want = oracle.value[i];
    if (value == want) continue;
    const double units = std::abs(value - want) / (unit * oracle.scale_of(i));
    if (units <= limit) continue;
    std::ostringstream out;
    out.precision(10);
    out << tensor << "[" << i << "]: expected " << want << ", got " << value << ", " << units
        << " units, limit " << limit;
    return out.str();
  }
  return "";
}

/// True when both have the same bits.
template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

/// The first text that is not "".
inline std::string first_fault(std::initializer_list<std::string> faults) {
  for (const std::string& fault : faults) {
    if (!fault.empty()) return fault;
  }
  return "";
}

/// Runs `check()`, which returns "" or a fault, under every schedule; what it throws is a fault
/// too.
template <typename Check>
std::string on_every_schedule(Check check) {
  for (int seed = 0; seed < kSchedules; ++seed) {
    optimized::simt::set_schedule_seed(static_cast<uint64_t>(seed));
    std::string fault;
    try {
      fault = check();
    } catch (const std::exception& error) {
      fault = error.what();
    }
    if (!fault.empty()) return "schedule " + std::to_string(seed) + ": " + fault;
  }
  return "";
}

/// Plants each bug in turn and expects `check()` (as a test runs it) to find it.
template <typename Mutant, typename Check>
void expect_found(std::initializer_list<Mutant> mutants, Check check) {
  for (const Mutant mutant : mutants) {
    optimized::active_mutant<Mutant> = mutant;
    const std::string fault = check();
    optimized::active_mutant<Mutant> = Mutant::none;
    EXPECT_NE(fault, "") << "mutant " << static_cast<int>(mutant) << " was missed";
  }
}

}  // namespace dsv32::suites
