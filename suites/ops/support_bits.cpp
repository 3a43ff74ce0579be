// support_bits and visible_bits through the dispatcher, against plain tensors.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

class SupportBitsOp : public OpTest {
 protected:
  /// seen [B,S,T] bool as words.
  static at::Tensor words(const at::Tensor& seen) {
    const int64_t keys = seen.size(2), count = (keys + 31) / 32;
    const at::Tensor padded = at::constant_pad_nd(seen, {0, count * 32 - keys});
    const at::Tensor value = at::ones({32}, at::kLong).__lshift__(at::arange(32));
    return (padded.to(at::kLong).unflatten(2, {count, 32}) * value).sum(-1).to(at::kInt);
  }
  at::Tensor mask(int64_t batch, int64_t keys) const {
    const at::Tensor key = at::arange(keys), first = at::arange(batch).unsqueeze(1);
    return (key % 5 != 3).logical_and(key >= first).to(GetParam().device);
  }
};

TEST_P(SupportBitsOp, SetsTheListedKeys) {
  for (const int64_t keys : {1, 31, 32, 33, 100}) {
    for (const int64_t slots : {0, 1, 7, 40}) {
      const at::Tensor noise = wide(random({3, 4, slots}, at::kFloat, 1, 10 * keys));
      const at::Tensor topk = noise.remainder(keys + 1).floor().to(at::kLong) - 1;  // -1 among them
      at::Tensor seen = at::zeros({3, 4, keys + 1}, at::kBool);
      seen.scatter_(2, topk + 1, at::ones_like(topk, at::kBool));
      const at::Tensor list = topk.to(at::kInt).to(GetParam().device);
      const at::Tensor want = words(seen.narrow(2, 1, keys));
      expect_same_bits(call("support_bits", {list, keys})[0].cpu(), want);
      expect_same_bits(call("support_bits", {strided(list), keys})[0].cpu(), want);
    }
  }
}

TEST_P(SupportBitsOp, SetsTheVisibleKeys) {
  for (const int64_t keys : {0, 1, 31, 32, 33, 100}) {
    for (const int64_t queries : {0, 1, 40}) {
      for (const int64_t first_query : {int64_t{0}, int64_t{5}, keys}) {
        const at::Tensor m = mask(3, keys);
        const at::Tensor edge = at::arange(queries).unsqueeze(1) + first_query;
        const at::Tensor seen = (at::arange(keys) <= edge).logical_and(m.cpu().unsqueeze(1));
        const auto got = call("visible_bits", {m, queries, first_query});
        expect_same_bits(got[0].cpu(), words(seen));
      }
    }
  }
}

TEST_P(SupportBitsOp, RefusesBadInput) {
  const at::Tensor topk =
      at::zeros({2, 3, 4}, at::TensorOptions(GetParam().device).dtype(at::kInt));
  expect_refused("support_bits: topk: expected Int, got Long", "support_bits",
                 {topk.to(at::kLong), 9});
  expect_refused("support_bits: topk: expected 3 axes, got shape [3, 4]", "support_bits",
                 {topk[0], 9});
  expect_refused("support_bits: keys: expected 0 to 1048576, got -1", "support_bits", {topk, -1});
  if (topk.is_cpu()) {
    expect_refused("support_bits: topk: expected 0 to 8, got 9", "support_bits", {topk + 9, 9});
  }
  expect_refused("visible_bits: mask: expected Bool, got Int", "visible_bits", {topk[0], 1, 0});
  expect_refused("visible_bits: mask: expected 2 axes, got shape [9]", "visible_bits",
                 {mask(1, 9)[0], 1, 0});
  expect_refused("visible_bits: first_query: expected 0 or more, got -1", "visible_bits",
                 {mask(1, 9), 1, -1});
}

DSV32_ON_EVERY_BACKEND(SupportBitsOp);

}  // namespace
}  // namespace dsv32::suites
