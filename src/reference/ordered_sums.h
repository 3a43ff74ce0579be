#pragma once

#include <cstdint>

/// Products whose sums are added one term after the other, in float32: the other end of what a
/// correct order of summation may do. Torch's own kernels add in blocks, whose errors are up to
/// four times smaller at width 1024; engines that loop over the inner dimension add like this.
/// No torch.
namespace dsv32::reference {

/// Columns that are summed together: a product of a multiple of them takes least time for each.
inline constexpr int64_t kOrderedCols = 32;

/// C[i,j] = sum over k of A[i,k] B[k,j], k ascending; product and sum are rounded apart (no fused
/// multiply-add), so that every machine gives the same bits. A [rows,depth], B [depth,cols],
/// C [rows,cols], row-major, `lda`, `ldb`, `ldc` elements between rows.
struct OrderedProduct {
  const float* a = nullptr;
  const float* b = nullptr;
  float* c = nullptr;
  int64_t rows = 0, cols = 0, depth = 0;
  int64_t lda = 0, ldb = 0, ldc = 0;
};
void ordered_product(const OrderedProduct& p);

/// sums[i] = sum over k of x[i,k], k ascending. x [rows,depth], contiguous.
void ordered_row_sums(const float* x, float* sums, int64_t rows, int64_t depth);

}  // namespace dsv32::reference
