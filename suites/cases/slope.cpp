// The gradients of one case against the losses themselves: directional derivatives of the float64
// LM loss along everything but the indexer, and of its KL along the indexer.

#include <gtest/gtest.h>

#include <cmath>

#include "harness/judge/limits.h"
#include "src/io/io.h"
#include "src/model/philox.h"
#include "src/model/trace.h"
#include "src/reference/reference.h"
#include "suites/kit/suite.h"

namespace dsv32::suites {
namespace {

/// The case's weights, moved along one random direction: w + h * d, d = +-1 times the tensor's root
/// mean square.
class MovedWeights : public WeightSource {
 public:
  MovedWeights(const WeightSource& base, uint64_t direction, const Objective& objective)
      : base_(base), direction_(direction), indexer_(!objective.lm) {}
  double step = 0;

  HostTensor load(const WeightSpec& spec) const override {
    HostTensor w = base_.load(spec).cast(DType::float64);
    if (is_buffer(spec.name) || is_indexer(spec.name) != indexer_) return w;
    const std::vector<double> d = direction(spec, w);
    const auto values = w.data<double>();
    for (size_t i = 0; i < d.size(); ++i) values[i] += step * d[i];
    return w;
  }
  std::string identity() const override { return base_.identity(); }

  std::vector<double> direction(const WeightSpec& spec, const HostTensor& w) const {
    const std::vector<double> values = w.to_doubles();
    double square = 0;
    for (const double v : values) square += v * v;
    const double size = std::sqrt(square / static_cast<double>(values.size()));
    const PhiloxStream stream(direction_, "direction." + spec.name);
    std::vector<double> d(values.size());
    for (size_t i = 0; i < d.size(); ++i) d[i] = (stream.lane16(i) & 1) != 0 ? size : -size;
    return d;
  }

 private:
  const WeightSource& base_;
  uint64_t direction_;
  bool indexer_;  // the indexer moves, or everything else
};

/// The float64 loss along one direction, the decisions of the unmoved model replayed.
class LossAlong {
 public:
  LossAlong(const Case& c, const Objective& objective, uint64_t direction)
      : case_(c),
        objective_(objective),
        batch_(make_batch(c)),
        base_(c),
        moved_(base_, direction, objective) {
    batch_.chunks.clear();
    model_ = reference::make_reference(case_.config, moved_);
    RunOptions options;
    options.dtype = DType::float64;
    options.objective = objective;
    options.backward = true;
    at_rest_ = model_->run(batch_, options);
  }

  /// Richardson extrapolation of the central difference.
  double derivative() {
    // The ReLU of the index scores has a kink wherever a product changes its sign: few do within a
    // small step.
    const double step = objective_.lm ? 0x1p-13 : 0x1p-23;
    const double coarse = central_difference(step), fine = central_difference(step / 2);
    return (4 * fine - coarse) / 3;
  }

  /// Sum over all weights of gradient times direction.
  double from_gradients() const {
    double sum = 0;
    for (const WeightSpec& spec : weight_specs(case_.config)) {
      const HostTensor* gradient = at_rest_.find("grad." + spec.name);
      if (gradient == nullptr) continue;
      const std::vector<double> g = gradient->to_doubles();
      const std::vector<double> d = moved_.direction(spec, base_.load(spec));
      for (size_t i = 0; i < g.size(); ++i) sum += g[i] * d[i];
    }
    return sum;
  }

 private:
  double loss(double step) {
    moved_.step = step;
    RunOptions options;
    options.dtype = DType::float64;
    options.objective = objective_;
    options.feeding = Feeding::forced;
    options.feed = &at_rest_;
    return model_->run(batch_, options).find(objective_.lm ? "loss.lm" : "loss.kl")->at(0);
  }
  double central_difference(double h) { return (loss(h) - loss(-h)) / (2 * h); }

  Case case_;
  Objective objective_;
  Batch batch_;
  SyntheticWeights base_;
  MovedWeights moved_;
  std::unique_ptr<Implementation> model_;
  Trace at_rest_;
};

void expect_slope(const Objective& objective) {
  const Case& c = io::find_case(suite_case());
  for (const uint64_t direction : {1, 2, 3}) {
    LossAlong loss(c, objective, direction);
    const double slope = loss.derivative(), expected = loss.from_gradients();
    ASSERT_NE(expected, 0);
    const harness::Measure measure =
        harness::by_limit("slope.relative", std::fabs(slope - expected) / std::fabs(expected));
    EXPECT_TRUE(measure.within()) << "direction " << direction << ": relative " << measure.measured;
  }
}

TEST(Slope, GradientsAreTheSlopeOfTheLoss) { expect_slope({}); }
TEST(Slope, IndexerGradientsAreTheSlopeOfTheWarmUpKl) {
  expect_slope({.lm = false, .kl = KlStage::warmup});
}
TEST(Slope, IndexerGradientsAreTheSlopeOfTheSparseKl) {
  expect_slope({.lm = false, .kl = KlStage::sparse});
}

}  // namespace
}  // namespace dsv32::suites
