// cache_append in the executor: bytes where they belong, and nowhere else.

#include "src/optimized/kernels/cache_append.h"

#include "suites/kernels/kit.h"

namespace dsv32::suites {
namespace {

using namespace optimized::DSV32_BACKEND;
using optimized::CacheAppendMutant;

struct Shape {
  int64_t batch, capacity, rows, first, row_bytes;
};

// Rows with and without whole vectors; a call that starts, goes on, fills, has no rows; more than
// one block.
const Shape kShapes[] = {
    {1, 2, 1, 0, 2},    {3, 5, 2, 1, 6},   {2, 4, 4, 0, 16},  {3, 7, 3, 3, 48}, {2, 6, 1, 4, 4096},
    {2, 6, 2, 2, 4112}, {1, 4, 2, 1, 510}, {2, 4, 2, 1, 514}, {2, 3, 0, 2, 16}, {1, 9, 7, 1, 1026}};

std::string check(const Shape& shape) {
  const auto [batch, capacity, rows, first, row_bytes] = shape;
  std::mt19937_64 engine(1);
  std::vector<unsigned char> before(batch * capacity * row_bytes), fresh(batch * rows * row_bytes);
  for (auto* bytes : {&before, &fresh}) {
    for (unsigned char& byte : *bytes) byte = static_cast<unsigned char>(engine());
  }
  std::vector<unsigned char> want = before;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < rows * row_bytes; ++i) {
      want[(b * capacity + first) * row_bytes + i] = fresh[b * rows * row_bytes + i];
    }
  }
  return on_every_schedule(
      [&, capacity = capacity, first = first, batch = batch, rows = rows, row_bytes = row_bytes] {
        std::vector<unsigned char> cache = before;
        launch_cache_append({.cache = cache.data(),
                             .fresh = fresh.data(),
                             .batch = batch,
                             .capacity = capacity,
                             .rows = rows,
                             .first = first,
                             .row_bytes = row_bytes},
                            nullptr);
        return std::string(cache == want ? "" : "other bytes");
      });
}

std::string check_all() {
  for (const Shape& shape : kShapes) {
    const std::string fault = check(shape);
    if (!fault.empty()) return "shape " + std::to_string(&shape - kShapes) + ": " + fault;
  }
  return "";
}

TEST(CacheAppendKernel, WritesTheRowsAndNothingElse) { EXPECT_EQ(check_all(), ""); }

TEST(CacheAppendKernel, EveryMutantIsFound) {
  expect_found({CacheAppendMutant::wrong_tail, CacheAppendMutant::wrong_place,
                CacheAppendMutant::wrong_batch},
               check_all);
}

}  // namespace
}  // namespace dsv32::suites
