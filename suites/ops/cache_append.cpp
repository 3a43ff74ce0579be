// cache_append through the dispatcher.

#include "suites/ops/kit.h"

namespace dsv32::suites {
namespace {

class CacheAppendOp : public OpTest {};

TEST_P(CacheAppendOp, WritesTheRowsInPlaceAndNothingElse) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t width : {1, 7, 64}) {
      for (const int64_t rows : {0, 1, 3}) {
        for (const int64_t first : {0, 2}) {
          const at::Tensor cache = random({3, 5, width}, dtype, 1);
          const at::Tensor fresh = random({3, rows, width}, dtype, 2);
          const at::Tensor want = cache.clone();
          want.narrow(1, first, rows).copy_(fresh);
          const at::Tensor own = cache.clone();
          EXPECT_TRUE(call("cache_append", {own, fresh, first}).empty());
          expect_same_bits(own, want);
          const at::Tensor other = cache.clone();
          call("cache_append", {other, strided(fresh), first});
          expect_same_bits(other, want);
        }
      }
    }
  }
}

TEST_P(CacheAppendOp, ChunksGiveTheSameCacheAsOneCall) {
  const at::Tensor rows = random({2, 9, 16}, at::kFloat, 1);
  const at::Tensor whole = at::zeros_like(rows), chunked = at::zeros_like(rows);
  call("cache_append", {whole, rows, 0});
  int64_t first = 0;
  for (const int64_t count : {4, 3, 1, 1}) {
    call("cache_append", {chunked, rows.narrow(1, first, count), first});
    first += count;
  }
  expect_same_bits(chunked, whole);
}

TEST_P(CacheAppendOp, RefusesBadInput) {
  const at::Tensor cache = random({2, 5, 8}, at::kFloat, 1);
  const at::Tensor fresh = random({2, 3, 8}, at::kFloat, 2);
  expect_refused("cache_append: cache: expected float32 or bfloat16, got Int", "cache_append",
                 {cache.to(at::kInt), fresh.to(at::kInt), 0});
  expect_refused("cache_append: cache: expected a contiguous tensor", "cache_append",
                 {strided(cache), fresh, 0});
  expect_refused("cache_append: fresh: expected Float as cache, got BFloat16", "cache_append",
                 {cache, fresh.to(at::kBFloat16), 0});
  expect_refused("cache_append: fresh: expected shape [2, 3, 8], got [2, 3, 7]", "cache_append",
                 {cache, fresh.narrow(2, 0, 7), 0});
  expect_refused("cache_append: fresh: expected 3 axes, got shape [3, 8]", "cache_append",
                 {cache, fresh[0], 0});
  expect_refused("cache_append: first: expected 0 to 2, got 3", "cache_append", {cache, fresh, 3});
  expect_refused("cache_append: first: expected 0 to 2, got -1", "cache_append",
                 {cache, fresh, -1});
}

DSV32_ON_EVERY_BACKEND(CacheAppendOp);

}  // namespace
}  // namespace dsv32::suites
