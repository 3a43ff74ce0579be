#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/judge/judge.h"
#include "harness/judge/measure/rows.h"
#include "src/model/philox.h"

/// A synthetic world for the tests of the judge: traces of the right names and shapes, made of
/// seeded noise. They are not outputs of a model; the judge does not know that.
namespace dsv32::suites {

/// Seeded normal and uniform numbers.
class Noise {
 public:
  Noise(uint64_t seed, const std::string& name) : stream_(seed, "self." + name) {}
  double uniform();  // [0, 1)
  double normal();

 private:
  PhiloxStream stream_;
  std::array<uint64_t, 4> words_ = {};
  uint64_t next_ = 0;
};

/// Sizes of tiny-wide: 2 layers, 4 heads, 16 experts in 4 groups, top-k 8, 2 x 33 tokens, 5 of them
/// padding.
Case world_case();

/// Oracle, reference, probe and a judged side with independent errors of equal size.
struct World {
  explicit World(uint64_t seed, DType dtype = DType::float32, Case the_case = world_case());

  /// Oracle values plus a relative error of `size` roundings, rounded to the dtype.
  HostTensor noisy(const std::string& tap, const std::string& side) const;
  /// A comparison of this tap in the forced mode.
  harness::Comparison comparison(const std::string& tap,
                                 harness::Mode mode = harness::Mode::forced) const;
  /// Evidence with both yardsticks on the same traces.
  harness::Evidence evidence() const;
  harness::Yardsticks yardsticks() const { return {&oracle, &reference, &probe}; }
  /// Replaces values of a judged tap.
  void corrupt(const std::string& tap, const std::vector<double>& values);
  std::vector<double> values(const std::string& tap) const {
    return judged.find(tap)->to_doubles();
  }
  const HostTensor& truth(const std::string& tap) const { return *oracle.find(tap); }

  uint64_t seed;
  DType dtype;
  Case c;
  Batch batch;
  Trace oracle, reference, probe, judged;
  std::map<std::string, HostTensor> biases;
  std::vector<std::vector<uint8_t>> support;  // per layer, from the judged side's decisions

 private:
  void make_scores(int64_t layer);
  void make_attention(int64_t layer);
  void make_router(int64_t layer);
  void make_values(const std::string& tap);
  void put_sides(const std::string& tap);
};

/// The golden's sketch of a whole tensor: what golden/dump/dsv32_dump/sketch.py keeps.
golden::SketchedTap make_sketch(const World& world, const std::string& tap,
                                const HostTensor& values);

/// The measure of this name; throws when the verdict has none.
const harness::Measure& measure(const harness::Verdict& verdict, const std::string& metric);
bool passes(const harness::Verdict& verdict);
bool fails(const harness::Verdict& verdict);
/// One line for a failure message.
std::string show(const harness::Verdict& verdict);

}  // namespace dsv32::suites
