#include "src/model/case.h"

#include <algorithm>

namespace dsv32 {

bool exercises_selection(const Case& c) {
  if (!c.config.use_sparse_attention || c.B <= 0) return false;
  // Query s of an unpadded row sees s + 1 keys.
  const auto rows_beyond = [&c](int64_t length) {
    return std::max<int64_t>(0, length - c.config.index_topk);
  };
  const int64_t judged = c.B * c.S - c.pad;
  const int64_t beyond = (c.B - 1) * rows_beyond(c.S) + rows_beyond(c.S - c.pad);
  return judged > 0 && 2 * beyond >= judged;
}

}  // namespace dsv32
