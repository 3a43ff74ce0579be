// linear_cross_entropy through the dispatcher, against float64.

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

struct Case {
  int64_t tokens, hidden, vocabulary;
};

// Around the chunks of tokens (1024) and of columns (2048); tiny's size; one of each.
const Case kCases[] = {{62, 64, 100}, {1, 1, 1}, {3, 16, 2047}, {5, 8, 2049}, {1025, 4, 30}};
constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16};

/// Counts the bytes that this thread holds at a time.
class PeakMemory : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t peak() const { return peak_; }

 private:
  int64_t now_ = 0, peak_ = 0;
};

int64_t peak_of(const std::function<void()>& run) {
  const auto memory = std::make_shared<PeakMemory>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
  run();
  return memory->peak();
}

at::Tensor loss_oracle(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& labels) {
  return at::cross_entropy_loss(x.mm(weight.t()), labels.cpu());
}

class LinearCrossEntropyOp : public OpTest {
 protected:
  at::Tensor x(const Case& c, at::ScalarType dtype) const {
    return random({c.tokens, c.hidden}, dtype, 1);
  }
  at::Tensor weight(const Case& c, at::ScalarType dtype) const {
    return random({c.vocabulary, c.hidden}, dtype, 2);
  }
  /// Every third token is ignored.
  at::Tensor labels(const Case& c) const {
    const at::Tensor ids = at::arange(c.tokens, at::kLong);
    return at::where(ids % 3 == 1, -100, (ids * 7 + c.vocabulary - 1) % c.vocabulary)
        .to(GetParam().device);
  }
  at::Tensor dloss() const { return at::full({}, 1.5f).to(GetParam().device); }
};

TEST_P(LinearCrossEntropyOp, MatchesFloat64) {
  for (const auto dtype : kDtypes) {
    for (const Case& c : kCases) {
      const at::Tensor a = x(c, dtype), w = weight(c, dtype);
      const auto got = call("linear_cross_entropy", {a, w, labels(c)});
      const at::Tensor lse = wide(a).mm(wide(w).t()).logsumexp(-1);
      const at::Tensor size = 1 + lse.abs().max();
      expect_close("linear_cross_entropy.loss", got[0], loss_oracle(wide(a), wide(w), labels(c)),
                   size);
      expect_close("linear_cross_entropy.lse", got[1], lse, size.expand_as(lse));
    }
  }
}

TEST_P(LinearCrossEntropyOp, GradientsMatchAutogradOfFloat64) {
  for (const auto dtype : kDtypes) {
    for (const Case& c : kCases) {
      const at::Tensor a = x(c, dtype), w = weight(c, dtype);
      const at::Tensor a64 = wide(a).requires_grad_(), w64 = wide(w).requires_grad_();
      const at::Tensor loss = loss_oracle(a64, w64, labels(c));
      const auto want = torch::autograd::grad({loss}, {a64, w64}, {wide(dloss())});
      const at::Tensor lse = call("linear_cross_entropy", {a, w, labels(c)})[1];
      const auto got = call("linear_cross_entropy_backward", {dloss(), a, w, labels(c), lse});
      // probabilities near 1 cancel with the label: an error is one of the probability
      const at::Tensor counted = (labels(c).cpu() != -100).to(at::kDouble).unsqueeze(-1);
      const double scale = 1.5 / counted.sum().item<double>();
      const at::Tensor dx_size = scale * counted * wide(w).abs().max();
      expect_close("linear_cross_entropy.dx", got[0], want[0],
                   at::maximum(want[0].abs(), dx_size.expand_as(want[0])) + 1e-30);
      expect_close("linear_cross_entropy.dweight", got[1], want[1],
                   at::maximum(want[1].abs(), scale * wide(a).abs().max()));
      EXPECT_EQ((got[0] * (labels(c) == -100).unsqueeze(-1)).abs().sum().item<float>(), 0.0f);
    }
  }
}

/// One token whose label is almost certain, by logits that float32 holds exactly: 1 - p is the
/// gradient, and nothing but the op's own roundings of 1 is in it.
TEST_P(LinearCrossEntropyOp, KeepsTheGradientOfAnAlmostCertainLabel) {
  const int64_t vocabulary = 64;
  for (const float label_logit : {37.0f, 45.0f, 53.0f}) {
    at::Tensor w = at::full({vocabulary, 1}, label_logit - 11);
    w[5][0] = label_logit;
    const at::Tensor weight = w.to(GetParam().device), x = at::ones({1, 1}).to(GetParam().device);
    const at::Tensor labels = at::full({1}, 5, at::kLong).to(GetParam().device);
    const at::Tensor one = at::ones({}).to(GetParam().device);
    const at::Tensor lse = call("linear_cross_entropy", {x, weight, labels})[1];
    const auto got = call("linear_cross_entropy_backward", {one, x, weight, labels, lse});
    const double rest = static_cast<double>(vocabulary - 1) * std::exp(-11.0);
    const at::Tensor want = at::full({}, -rest / (1 + rest), at::kDouble);
    expect_close("linear_cross_entropy.certain", got[1][5][0], want, at::ones({}, at::kDouble));
  }
}

TEST_P(LinearCrossEntropyOp, NoCountedTokenGivesNanAndNoGradient) {
  const Case c{3, 8, 11};
  const at::Tensor a = x(c, at::kFloat), w = weight(c, at::kFloat);
  const at::Tensor none = at::full_like(labels(c), -100);
  const auto got = call("linear_cross_entropy", {a, w, none});
  EXPECT_TRUE(std::isnan(got[0].item<float>()));
  const auto gradients = call("linear_cross_entropy_backward", {dloss(), a, w, none, got[1]});
  EXPECT_EQ(gradients[0].abs().sum().item<float>(), 0.0f);
  EXPECT_EQ(gradients[1].abs().sum().item<float>(), 0.0f);
}

TEST_P(LinearCrossEntropyOp, TakesNoTokens) {
  const Case c{0, 8, 11};
  const at::Tensor a = x(c, at::kFloat), w = weight(c, at::kFloat);
  const auto got = call("linear_cross_entropy", {a, w, labels(c)});
  EXPECT_TRUE(std::isnan(got[0].item<float>()));
  const auto gradients = call("linear_cross_entropy_backward", {dloss(), a, w, labels(c), got[1]});
  EXPECT_EQ(gradients[0].numel(), 0);
  EXPECT_EQ(gradients[1].abs().sum().item<float>(), 0.0f);
}

TEST_P(LinearCrossEntropyOp, TakesInputsThatAreNotContiguous) {
  const Case c{6, 16, 40};
  const at::Tensor a = x(c, at::kFloat), w = weight(c, at::kFloat);
  const auto want = call("linear_cross_entropy", {a, w, labels(c)});
  const auto got = call("linear_cross_entropy", {strided(a), strided(w), strided(labels(c))});
  expect_close("linear_cross_entropy.loss", got[0], wide(want[0]));
  const auto dense = call("linear_cross_entropy_backward", {dloss(), a, w, labels(c), want[1]});
  const auto loose = call("linear_cross_entropy_backward",
                          {dloss(), strided(a), strided(w), strided(labels(c)), strided(want[1])});
  for (size_t i = 0; i < dense.size(); ++i) {
    expect_close("linear_cross_entropy.dx", loose[i], wide(dense[i]));
  }
}

TEST_P(LinearCrossEntropyOp, GivesTheSameBitsOnEveryRun) {
  const Case c{40, 33, 300};
  const at::Tensor a = x(c, at::kFloat), w = weight(c, at::kFloat);
  expect_deterministic([&] {
    auto results = call("linear_cross_entropy", {a, w, labels(c)});
    const auto gradients =
        call("linear_cross_entropy_backward", {dloss(), a, w, labels(c), results[1]});
    results[0] = results[0].view({1});
    results.insert(results.end(), gradients.begin(), gradients.end());
    return results;
  });
}

// What the op holds beside its results grows with the chunks and with hidden, not with the
// vocabulary: the bound below, at hidden 7168, is under 300 MB.
TEST_P(LinearCrossEntropyOp, WorkspaceIsBounded) {
  if (!dloss().is_cpu()) return;
  const auto bound = [](int64_t hidden) {
    const int64_t logits = 3 * 1024 * 2048, rows = 4096 + 2 * 2048 + 1024;
    return 4 * (logits + rows * hidden) + (int64_t{1} << 20);
  };
  EXPECT_LT(bound(7168), int64_t{300} * 1000 * 1000);
  const Case c{1030, 48, 4200};  // more than one chunk of each; the logits would take 17 MB
  for (const auto dtype : kDtypes) {
    if (GetParam().space == "dsv32_simt" && dtype == at::kBFloat16) continue;  // widens in ATen
    const at::Tensor a = x(c, dtype), w = weight(c, dtype), ids = labels(c);
    std::vector<at::Tensor> results;
    const int64_t forward = peak_of([&] { results = call("linear_cross_entropy", {a, w, ids}); });
    EXPECT_LE(forward, bound(c.hidden));
    const int64_t backward = peak_of([&] {
      results = call("linear_cross_entropy_backward", {dloss(), a, w, ids, results[1]});
    });
    EXPECT_LE(backward, bound(c.hidden) + static_cast<int64_t>(a.nbytes() + w.nbytes()));
    EXPECT_GT(backward, 4 * 1024 * 2048);  // the reporter counts
  }
}

TEST_P(LinearCrossEntropyOp, RefusesBadInput) {
  const Case c{3, 8, 11};
  const at::Tensor a = x(c, at::kFloat), w = weight(c, at::kFloat), ids = labels(c);
  const std::string op = "linear_cross_entropy";
  expect_refused(op + ": x: expected float32 or bfloat16, got Double", op,
                 {a.to(at::kDouble), w, ids});
  expect_refused(op + ": x: expected 2 axes, got shape [8]", op, {a[0], w, ids});
  expect_refused(op + ": weight: expected Float as x, got BFloat16", op,
                 {a, w.to(at::kBFloat16), ids});
  expect_refused(op + ": weight: expected shape [11, 8], got [11, 7]", op,
                 {a, w.narrow(1, 0, 7), ids});
  expect_refused(op + ": labels: expected Long, got Int", op, {a, w, ids.to(at::kInt)});
  expect_refused(op + ": labels: expected shape [3], got [2]", op, {a, w, ids.narrow(0, 0, 2)});
  expect_refused(op + "_backward: lse: expected shape [3], got [2]", op + "_backward",
                 {dloss(), a, w, ids, a.flatten().narrow(0, 0, 2).to(at::kDouble)});
  if (!a.is_cpu()) return;
  expect_refused(op + ": labels: expected 0 to 10, got 11", op, {a, w, at::full_like(ids, 11)});
}

DSV32_ON_EVERY_BACKEND(LinearCrossEntropyOp);

}  // namespace
}  // namespace dsv32::suites
