#include "src/optimized/optimized.h"

namespace dsv32::optimized {

void load_ops() {}

}  // namespace dsv32::optimized
