// The swiglu kernels in the executor, against float64.

#include "src/optimized/kernels/swiglu.h"

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized;
using namespace optimized::DSV32_BACKEND;

// Around a vector (4 or 8) and a block of them.
const int64_t kCounts[] = {1, 3, 4, 8, 9, 255, 256, 257, 1023, 1024, 2048, 2049, 4100};

template <typename T>
struct Inputs {
  std::vector<T> gate, up, dy;

  explicit Inputs(int64_t count)
      : gate(random_values<T>(count, 1, 4)),
        up(random_values<T>(count, 2, 2)),
        dy(random_values<T>(count, 3)) {}
};

struct Want {
  Oracle y, dgate, dup;

  explicit Want(int64_t count) : y(count), dgate(count, true), dup(count) {}
};

template <typename T>
Want oracle(const Inputs<T>& in) {
  Want want(static_cast<int64_t>(in.gate.size()));
  for (size_t i = 0; i < in.gate.size(); ++i) {
    const double gate = to_float(in.gate[i]), up = to_float(in.up[i]), dy = to_float(in.dy[i]);
    const double s = 1 / (1 + std::exp(-gate));
    want.y.value[i] = gate * s * up;
    want.dgate.value[i] = dy * up * s * (1 + gate * (1 - s));
    want.dgate.scale[i] = dy * up * s * (1 + std::abs(gate) * (1 - s));
    want.dup.value[i] = dy * gate * s;
  }
  return want;
}

template <typename T>
std::string check(const Inputs<T>& in, const Want& want) {
  const auto count = static_cast<int64_t>(in.gate.size());
  auto y = unwritten<T>(count), dgate = y, dup = y;
  launch_swiglu<T>({.gate = in.gate.data(), .up = in.up.data(), .y = y.data(), .count = count},
                   nullptr);
  launch_swiglu_backward<T>({.dy = in.dy.data(),
                             .gate = in.gate.data(),
                             .up = in.up.data(),
                             .dgate = dgate.data(),
                             .dup = dup.data(),
                             .count = count},
                            nullptr);
  return first_fault({beyond_limit("swiglu.y", y, want.y),
                      beyond_limit("swiglu.dgate", dgate, want.dgate),
                      beyond_limit("swiglu.dup", dup, want.dup)});
}

template <typename T>
std::string check_counts() {
  for (const int64_t count : kCounts) {
    const Inputs<T> in(count);
    const Want want = oracle(in);
    const std::string fault = on_every_schedule([&] { return check(in, want); });
    if (!fault.empty()) return std::to_string(count) + " elements: " + fault;
  }
  return "";
}

std::string check_all() { return first_fault({check_counts<float>(), check_counts<bf16>()}); }

TEST(SwigluKernel, MatchesFloat64InFloat32) { EXPECT_EQ(check_counts<float>(), ""); }
TEST(SwigluKernel, MatchesFloat64InBf16) { EXPECT_EQ(check_counts<bf16>(), ""); }

TEST(SwigluKernel, FarGatesAreZeroOrLinear) {
  const std::vector<float> gate = {-1000, 1000, 0, -90}, up = {3, 3, 3, 3};
  std::vector<float> y(4);
  launch_swiglu<float>({.gate = gate.data(), .up = up.data(), .y = y.data(), .count = 4}, nullptr);
  EXPECT_EQ(y[0], 0);
  EXPECT_EQ(y[1], 3000);
  EXPECT_EQ(y[2], 0);
  EXPECT_LE(std::abs(y[3]), std::numeric_limits<float>::min() * 300);
}

TEST(SwigluKernel, EveryMutantIsFound) {
  expect_found({SwigluMutant::swapped, SwigluMutant::no_inner_gradient, SwigluMutant::dropped_tail,
                SwigluMutant::wrong_dup},
               check_all);
}

}  // namespace
}  // namespace dsv32::suites
