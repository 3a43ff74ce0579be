// The training layer alone: optimizer, masters, rows. No golden.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "harness/judge/limits.h"
#include "harness/training/own_adamw.h"
#include "src/bridge/bridge.h"
#include "src/bridge/runtime.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/reference/reference.h"
#include "src/training/one_ulp.h"
#include "src/training/trainer.h"

namespace dsv32::suites {
namespace {

using namespace training;

constexpr int kDigits = 10;  // of a float64 step against one computed by hand

long digits(double value) { return std::lround(value * std::pow(10.0, kDigits)); }

Tensor doubles(const std::vector<double>& values) { return torch::tensor(values, torch::kFloat64); }

Group group(AdamW adamw, std::optional<double> clip = {}) {
  return {.name = "all", .adamw = adamw, .clip = clip};
}

TensorTable table(const std::vector<std::pair<std::string, Tensor>>& entries) {
  TensorTable result;
  for (const auto& [name, value] : entries) result.put(name, value);
  return result;
}

bool same_bits(const TensorTable& a, const TensorTable& b) {
  if (a.names() != b.names()) return false;
  for (const std::string& name : a.names())
    if (!torch::equal(a.at(name), b.at(name))) return false;
  return true;
}

// lr 0.1, betas 0.9/0.5, eps 0, decay 0.5; p = 2, gradients 1 then 3.
// Step 1: p = 2 * 0.95 - 0.1 * 1 = 1.8.
// Step 2: m = 0.09 + 0.3 = 0.39, / 0.19; v = 0.25 + 4.5 = 4.75, / 0.75.
//         p = 1.8 * 0.95 - 0.1 * (0.39 / 0.19) / sqrt(4.75 / 0.75).
TEST(AdamWStep, AgreesWithTwoStepsByHand) {
  TensorTable p = table({{"w", doubles({2})}});
  const auto optimizer = make_adamw(
      {group({.lr = 0.1, .beta1 = 0.9, .beta2 = 0.5, .eps = 0, .weight_decay = 0.5})}, p);
  EXPECT_EQ(optimizer->step(p, table({{"w", doubles({1})}})), std::vector<double>{1});
  EXPECT_EQ(digits(p.at("w").item<double>()), digits(1.8));
  optimizer->step(p, table({{"w", doubles({3})}}));
  EXPECT_EQ(digits(p.at("w").item<double>()),
            digits(1.8 * 0.95 - 0.1 * (0.39 / 0.19) / std::sqrt(4.75 / 0.75)));
}

TEST(AdamWStep, ReturnsTheNormBeforeClippingAndClipsAsTorchDoes) {
  // eps so large that the step is lr m / eps: proportional to the clipped gradient.
  const AdamW adamw{.lr = 1, .beta1 = 0, .beta2 = 0, .eps = 1e8, .weight_decay = 0};
  TensorTable p = table({{"a", doubles({0})}, {"b", doubles({0})}});
  const auto optimizer = make_adamw({group(adamw, 1.0)}, p);
  EXPECT_EQ(optimizer->step(p, table({{"a", doubles({3})}, {"b", doubles({4})}})),
            std::vector<double>{5});
  const double factor = 1 / (5 + 1e-6);
  EXPECT_EQ(digits(p.at("a").item<double>() * 1e8), digits(-3 * factor / (1 + 3 * factor / 1e8)));
  TensorTable small = table({{"a", doubles({0})}});
  make_adamw({group(adamw, 1.0)}, small)->step(small, table({{"a", doubles({0.5})}}));
  EXPECT_EQ(digits(small.at("a").item<double>() * 1e8), digits(-0.5 / (1 + 0.5 / 1e8)));
}

TEST(AdamWStep, GradientsAreNotChangedByClipping) {
  TensorTable p = table({{"w", doubles({1})}});
  const TensorTable g = table({{"w", doubles({30})}});
  make_adamw({group({}, 1.0)}, p)->step(p, g);
  EXPECT_EQ(g.at("w").item<double>(), 30);
}

TEST(AdamWStep, ZeroGradientIsSteppedAndNoGradientIsNot) {
  TensorTable p = table({{"idle", doubles({1})}, {"frozen", doubles({1})}});
  const auto optimizer = make_adamw({group({.lr = 0.1, .weight_decay = 0.5})}, p);
  optimizer->step(p, table({{"idle", doubles({0})}}));
  EXPECT_EQ(digits(p.at("idle").item<double>()), digits(0.95));  // weight decay alone
  EXPECT_EQ(p.at("frozen").item<double>(), 1);
  EXPECT_TRUE(optimizer->state().has("all/idle/exp_avg"));
  EXPECT_FALSE(optimizer->state().has("all/frozen/exp_avg"));
}

TEST(AdamWStep, TwoGroupsMoveTheirOwnAndClipByTheirOwnNorm) {
  TensorTable p = table({{"lm", doubles({0})}, {"kl", doubles({0})}});
  const auto of = [](const std::string& name, double lr) {
    return Group{.name = name,
                 .adamw = {.lr = lr, .weight_decay = 0},
                 .takes = [name](const std::string& parameter) { return parameter == name; }};
  };
  const auto optimizer = make_adamw({of("lm", 0.1), of("kl", 0.2)}, p);
  EXPECT_EQ(optimizer->step(p, table({{"lm", doubles({3})}, {"kl", doubles({4})}})),
            (std::vector<double>{3, 4}));
  EXPECT_EQ(std::lround(p.at("lm").item<double>() * 1000), -100);
  EXPECT_EQ(std::lround(p.at("kl").item<double>() * 1000), -200);
  EXPECT_THROW(make_adamw({of("lm", 0.1), of("lm", 0.2)}, p), Error);
}

/// Largest distance of a float32 value from another side's, in units in the last place; of the
/// tensor's mean where the value is smaller.
double ulps_apart(const TensorTable& a, const TensorTable& b) {
  double most = 0;
  for (const std::string& name : a.names()) {
    const torch::Tensor x = a.at(name).to(torch::kDouble), y = b.at(name).to(torch::kDouble);
    const torch::Tensor size = torch::maximum(x.abs(), x.abs().mean());
    const double apart = ((x - y).abs() / size).max().item<double>();
    most = std::max(most, apart / std::numeric_limits<float>::epsilon());
  }
  return most;
}

testing::AssertionResult within(double ulps) {
  const harness::Measure measure = harness::by_limit("own_adamw.ulps", ulps);
  return measure.within() ? testing::AssertionSuccess()
                          : testing::AssertionFailure() << ulps << " > " << measure.limit;
}

class OwnAdamW : public testing::TestWithParam<const char*> {
 protected:
  AdamWKernels kernels(DType dtype = DType::float32, Bug bug = Bug::none) const {
    return harness::own_adamw(GetParam(), dtype, bug);
  }
};

TEST_P(OwnAdamW, StepsAsTorchDoes) {
  const std::vector<Group> groups = {group({.lr = 0.1, .weight_decay = 0.5}, 1.0)};
  const auto start = [] {
    torch::manual_seed(7);
    return table(
        {{"a", torch::randn({33, 70})}, {"b", torch::randn({5})}, {"idle", torch::ones({3})}});
  };
  TensorTable torchs = start(), own = start();
  const auto plain = make_adamw(groups, torchs);
  const auto fused = make_adamw(groups, own, Bug::none, kernels());
  for (int step = 0; step < 3; ++step) {
    const TensorTable g = table({{"a", torch::randn({33, 70})}, {"b", 40 * torch::randn({5})}});
    const double norm = plain->step(torchs, g)[0], own_norm = fused->step(own, g)[0];
    EXPECT_TRUE(within(std::abs(own_norm / norm - 1) / std::numeric_limits<float>::epsilon()));
  }
  EXPECT_TRUE(within(ulps_apart(torchs, own)));
  EXPECT_TRUE(within(ulps_apart(plain->state(), fused->state())));
  EXPECT_EQ(fused->state().names(), plain->state().names());  // idle has none
}

TEST_P(OwnAdamW, IsNotForFloat64MastersNorForPlantedBugs) {
  EXPECT_TRUE(kernels().update);
  EXPECT_FALSE(kernels(DType::float64).update);
  EXPECT_FALSE(kernels(DType::float32, Bug::lr_1_05).update);
  TensorTable p = table({{"w", torch::ones({1})}});
  EXPECT_THROW(make_adamw({group({})}, p, Bug::l2_decay, kernels()), Error);
}

INSTANTIATE_TEST_SUITE_P(Kernels, OwnAdamW, testing::Values("optimized", "optimized-simt"));

/// Three tensors after a few steps.
struct Trained {
  TensorTable parameters;
  std::unique_ptr<Optimizer> optimizer;
};

Trained start(uint64_t seed) {
  torch::manual_seed(seed);
  Trained trained;
  for (const char* name : {"a", "b", "frozen"}) trained.parameters.put(name, torch::randn({3, 5}));
  trained.optimizer = make_adamw({group({}, 1.0)}, trained.parameters);
  return trained;
}

TensorTable gradients(uint64_t seed) {
  torch::manual_seed(seed);
  return table({{"a", torch::randn({3, 5})}, {"b", torch::randn({3, 5})}});
}

TEST(OptimizerState, RoundTripGivesTheSameNextStepBitwise) {
  Trained first = start(1);
  for (uint64_t t = 0; t < 3; ++t) first.optimizer->step(first.parameters, gradients(10 + t));
  Trained second = start(2);
  second.parameters.assign(first.parameters);
  second.optimizer->set_state(first.optimizer->state().clone());
  EXPECT_EQ(second.optimizer->state().at("all/step").item<int64_t>(), 3);
  for (Trained* side : {&first, &second}) side->optimizer->step(side->parameters, gradients(20));
  EXPECT_TRUE(same_bits(first.parameters, second.parameters));
  EXPECT_TRUE(same_bits(first.optimizer->state(), second.optimizer->state()));
}

TEST(OptimizerState, WithoutItTheNextStepIsAnother) {
  Trained first = start(1), second = start(2);
  first.optimizer->step(first.parameters, gradients(10));
  second.parameters.assign(first.parameters);
  for (Trained* side : {&first, &second}) side->optimizer->step(side->parameters, gradients(20));
  EXPECT_FALSE(same_bits(first.parameters, second.parameters));
}

TEST(OptimizerState, WrongOnesAreRefused) {
  Trained trained = start(1);
  trained.optimizer->step(trained.parameters, gradients(10));
  const OptimizerState good = trained.optimizer->state().clone();
  const auto refuses = [&](const std::function<void(OptimizerState&)>& spoil) {
    OptimizerState bad = good.clone();
    spoil(bad);
    try {
      trained.optimizer->set_state(bad);
    } catch (const Error& error) {
      return error.code() == ExitCode::artefact;
    }
    return false;
  };
  EXPECT_TRUE(refuses([](OptimizerState& s) { s.put("all/c/exp_avg", torch::zeros({1})); }));
  EXPECT_TRUE(refuses([](OptimizerState& s) { s.put("all/a/exp_avg", torch::zeros({5, 3})); }));
  EXPECT_TRUE(refuses([](OptimizerState& s) {
    s.put("all/frozen/exp_avg", torch::zeros({3, 5}));
  }));
  EXPECT_TRUE(refuses([](OptimizerState& s) { s.put("all/step", torch::zeros({1})); }));
  EXPECT_TRUE(refuses([](OptimizerState& s) { s = OptimizerState(); }));
  EXPECT_FALSE(refuses([](OptimizerState&) {}));
}

TEST(TensorTable, AssignRefusesOtherNamesAndShapes) {
  TensorTable to = table({{"a", torch::zeros({2})}});
  EXPECT_THROW(to.assign(table({{"b", torch::zeros({2})}})), Error);
  EXPECT_THROW(to.assign(table({{"a", torch::zeros({3})}})), Error);
  to.assign(table({{"a", torch::ones({2}, torch::kFloat64)}}));
  EXPECT_EQ(to.at("a").scalar_type(), torch::kFloat32);
  EXPECT_EQ(to.at("a").sum().item<float>(), 2);
}

// --- rows and micro-batches
// -----------------------------------------------------------------------

TEST(Rows, SharesAreContiguousEvenAndComplete) {
  for (const int64_t count : {1, 2, 3, 5, 8}) {
    int64_t next = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto [first, last] = share_of_rows(8, i, count);
      EXPECT_EQ(first, next);
      EXPECT_GE(last - first, 8 / count);
      EXPECT_LE(last - first, (8 + count - 1) / count);
      next = last;
    }
    EXPECT_EQ(next, 8);
  }
}

TEST(Rows, SlicesJoinToTheWhole) {
  const Case& c = io::find_case("tiny-shard");
  const Batch batch = make_batch(c);
  const Batch rows = slice_rows(batch, 5, 9);
  EXPECT_EQ(rows.B, 4);
  EXPECT_EQ(rows.labels[0], batch.labels[5 * batch.S]);
  EXPECT_EQ(rows.input_ids.size(), static_cast<size_t>(4 * batch.S));
  EXPECT_THROW(slice_rows(batch, 3, 3), Error);
  EXPECT_THROW(slice_rows(batch, 0, batch.B + 1), Error);

  Trace decisions;
  HostTensor topk(DType::int32, {24, 33, 8});
  for (int64_t i = 0; i < topk.numel(); ++i) topk.data<int32_t>()[i] = static_cast<int32_t>(i);
  decisions.put("layers.0.topk", topk);
  decisions.put("logits", HostTensor(DType::float32, {24, 33, 2}));
  const Trace joined =
      join_decisions({slice_decisions(decisions, 0, 7), slice_decisions(decisions, 7, 24)});
  EXPECT_EQ(joined.names(), std::vector<std::string>{"layers.0.topk"});
  EXPECT_TRUE(joined.find("layers.0.topk")->identical(topk));
}

/// A float32 run of tiny-wide.
class Side {
 public:
  explicit Side(int64_t micro_batches = 1, TrainerOptions options = {})
      : case_(io::find_case("tiny-wide")),
        start_(case_.seed),
        weights_(case_.config, start_, torch::kFloat32, options.dtype),
        model_(reference::make_reference(case_.config, weights_)),
        optimizer_(make_adamw({group({}, 1.0)}, weights_.table())),
        trainer_(case_, {.groups = {}, .steps = 4, .micro_batches = micro_batches}, *model_,
                 weights_, *optimizer_, options) {
    set_threads(1);
  }
  Trainer& trainer() { return trainer_; }
  FullWeights& weights() { return weights_; }
  Optimizer& optimizer() { return *optimizer_; }
  const Case& the_case() const { return case_; }

 private:
  Case case_;
  SyntheticWeights start_;
  FullWeights weights_;
  std::unique_ptr<Implementation> model_;
  std::unique_ptr<Optimizer> optimizer_;
  Trainer trainer_;
};

TEST(Trainer, GradientIsTheMeanOverMicroBatches) {
  Side whole(2), upper(1, {.rows = {{0, 1}}}), lower(1, {.rows = {{1, 2}}});
  const StepRecord both = whole.trainer().measure(0);
  const StepRecord first = upper.trainer().measure(0), second = lower.trainer().measure(0);
  EXPECT_EQ(both.loss, (first.loss + second.loss) / 2);
  for (const std::string& name : both.gradients.names()) {
    const Tensor mean = first.gradients.at(name) * 0.5 + second.gradients.at(name) * 0.5;
    EXPECT_TRUE(torch::equal(both.gradients.at(name), mean)) << name;
  }
  EXPECT_EQ(both.decisions.names(), first.decisions.names());
}

TEST(Trainer, RestoredRunTakesTheSameNextStepBitwise) {
  Side first, second;
  first.trainer().step(0);
  const Snapshot snapshot = take_snapshot(first.weights(), first.optimizer());
  restore(snapshot, second.weights(), second.optimizer());
  const StepRecord a = first.trainer().step(1), b = second.trainer().step(1);
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_EQ(a.grad_norm, b.grad_norm);
  EXPECT_TRUE(same_bits(first.weights().table(), second.weights().table()));
}

TEST(Trainer, TheModelReadsTheWeightsInForce) {
  Side side;
  const double before = side.trainer().measure(0).loss;
  side.trainer().step(0);
  EXPECT_NE(side.trainer().measure(0).loss, before);
}

TEST(Trainer, AnIdleExpertIsSteppedAndTheIndexerIsNot) {
  Side side;
  const TensorTable start = side.weights().table().clone();
  const StepRecord record = side.trainer().step(0);
  for (const std::string& name : start.names()) {
    const bool moved = !torch::equal(start.at(name), side.weights().table().at(name));
    EXPECT_EQ(moved, !is_indexer(name)) << name;
    EXPECT_EQ(record.gradients.has(name), !is_indexer(name)) << name;
  }
}

TEST(FullWeights, A16BitModelReadsRoundedMasters) {
  Side side(1, {.dtype = DType::bfloat16});
  side.trainer().step(0);
  const WeightSpec spec{"lm_head.weight", *weight_shape(side.the_case().config, "lm_head.weight")};
  const HostTensor seen = side.weights().load(spec);
  const HostTensor master = to_host(side.weights().table().at(spec.name), DType::float32);
  EXPECT_EQ(seen.dtype(), DType::bfloat16);
  EXPECT_TRUE(seen.identical(master.cast(DType::bfloat16)));
  EXPECT_FALSE(seen.cast(DType::float32).identical(master));
}

TEST(OneUlp, MovesEveryWeightButZeroByOneUlpAndNoBuffer) {
  const Case& c = io::find_case("tiny-wide");
  const SyntheticWeights base(c.seed);
  const OneUlpWeights moved(base, 7), still(base, 0);
  for (const WeightSpec& spec : weight_specs(c.config)) {
    const HostTensor before = base.load(spec), after = moved.load(spec);
    EXPECT_TRUE(still.load(spec).identical(before));
    EXPECT_EQ(after.identical(before), is_buffer(spec.name)) << spec.name;
    if (is_buffer(spec.name)) continue;
    const auto was = before.data<float>();
    const auto is = after.data<float>();
    for (size_t i = 0; i < was.size(); ++i)
      EXPECT_TRUE(was[i] == 0 ? is[i] == 0
                              : is[i] == std::nextafter(was[i], INFINITY) ||
                                    is[i] == std::nextafter(was[i], -INFINITY));
  }
}

}  // namespace
}  // namespace dsv32::suites
