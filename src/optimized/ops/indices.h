#pragma once

#include <cstdint>
#include <optional>

#include "src/optimized/ops/arguments.h"

namespace dsv32::optimized {

/// Every index is in [0, count), or is `none`. On a GPU nothing is read back: there a kernel leaves
/// out an index that is out of range.
inline void expect_indices(const Argument& a, int64_t count, std::optional<int64_t> none = {}) {
  if (!a.tensor.is_cpu() || a.tensor.numel() == 0) return;
  at::Tensor outside = a.tensor.lt(0).logical_or_(a.tensor.ge(count));
  if (none.has_value()) outside = outside.logical_and_(a.tensor.ne(*none));
  if (!outside.any().item<bool>()) return;
  TORCH_CHECK(false, a.op, ": ", a.name, ": expected 0 to ", count - 1, ", got ",
              a.tensor.masked_select(outside)[0].item<int64_t>());
}

}  // namespace dsv32::optimized
