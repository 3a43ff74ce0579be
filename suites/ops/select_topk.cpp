// select_topk through the dispatcher, against a stable sort.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// The first k under the total order of docs/spec.md 1.6, -1 where a score is -inf.
at::Tensor oracle(const at::Tensor& scores, int64_t k, bool by_score) {
  const int64_t keys = scores.size(-1);
  const auto [sorted, order] =
      at::sort(wide(scores), /*stable=*/true, /*dim=*/-1, /*descending=*/true);
  const int64_t taken = std::min(k, keys);
  const at::Tensor none = at::isneginf(sorted.narrow(-1, 0, taken));
  at::Tensor picks = order.narrow(-1, 0, taken).masked_fill(none, keys);
  if (!by_score) picks = std::get<0>(picks.sort(-1));
  picks = picks.masked_fill(picks == keys, -1);
  return at::constant_pad_nd(picks, {0, k - taken}, -1).to(at::kInt);
}

class SelectTopkOp : public OpTest {
 protected:
  void expect_exact(const at::Tensor& scores, int64_t k) const {
    for (const bool by_score : {false, true}) {
      const at::Tensor got = call("select_topk", {scores, k, by_score})[0];
      EXPECT_TRUE(at::equal(got.cpu(), oracle(scores, k, by_score)))
          << "scores " << scores.sizes() << ", k " << k << ", by score: " << by_score;
    }
  }
};

TEST_P(SelectTopkOp, IsTheStableSort) {
  for (const int64_t keys : {1, 7, 8, 9, 600, 2049}) {
    for (const int64_t k : {1, 8, 500}) expect_exact(random({2, 3, keys}, at::kFloat, keys), k);
  }
  expect_exact(random({40}, at::kFloat, 1), 8);
  expect_exact(random({0, 40}, at::kFloat, 1), 8);
  expect_exact(random({3, 0}, at::kFloat, 1), 8);
}

TEST_P(SelectTopkOp, BreaksTiesByLowerIndex) {
  const at::Tensor coarse = random({3, 5, 700}, at::kFloat, 1).round();  // has -0 as well
  for (const int64_t k : {1, 8, 256, 699, 700, 701}) expect_exact(coarse, k);
  expect_exact(at::zeros({2, 3000}, coarse.options()), 2048);
  expect_exact(at::full({1, 100000}, -1.5, coarse.options()), 2048);
}

TEST_P(SelectTopkOp, PadsRowsWithFewKeys) {
  at::Tensor scores = random({1, 20, 20}, at::kFloat, 1);
  const at::Tensor hidden = at::ones({20, 20}, scores.options()).triu(1).to(at::kBool);
  scores.masked_fill_(hidden, -kInf);
  for (const int64_t k : {1, 7, 8, 9, 20, 21}) expect_exact(scores, k);
  expect_exact(at::full({2, 33}, -kInf, scores.options()), 4);
}

TEST_P(SelectTopkOp, NeverSelectsNan) {
  const at::Tensor scores = at::full({40}, std::nan(""), at::kFloat).to(GetParam().device);
  scores[17] = -3.0;
  const at::Tensor got = call("select_topk", {scores, 3, true})[0].cpu();
  EXPECT_TRUE(at::equal(got, at::tensor({17, -1, -1}, at::kInt))) << got;
}

TEST_P(SelectTopkOp, TakesScoresThatAreNotContiguous) {
  expect_exact(strided(random({3, 100}, at::kFloat, 1)), 10);
  expect_exact(random({100, 3}, at::kFloat, 1).t(), 10);
}

TEST_P(SelectTopkOp, GivesTheSameBitsOnEveryRun) {
  const at::Tensor scores = random({40, 700}, at::kFloat, 1).round();
  expect_deterministic([&] { return call("select_topk", {scores, 100, true}); });
}

TEST_P(SelectTopkOp, RefusesBadInput) {
  const at::Tensor scores = random({2, 8}, at::kFloat, 1);
  expect_refused("select_topk: scores: expected Float, got BFloat16", "select_topk",
                 {scores.to(at::kBFloat16), 3, false});
  expect_refused("select_topk: scores: expected 1 axes or more", "select_topk",
                 {scores[0][0], 3, false});
  expect_refused("select_topk: k: expected 1 to 65536, got 0", "select_topk", {scores, 0, false});
  expect_refused("select_topk: k: expected 1 to 65536, got 65537", "select_topk",
                 {scores, 65537, false});
}

DSV32_ON_EVERY_BACKEND(SelectTopkOp);

}  // namespace
}  // namespace dsv32::suites
