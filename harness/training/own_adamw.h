#pragma once

#include "harness/training/side.h"
#include "src/training/optimizer.h"

namespace dsv32::harness {

/// The AdamW kernels of the side's implementation. None, which is torch's AdamW: for the reference,
/// for float64 masters, and for a planted bug, which lies in torch's.
training::AdamWKernels own_adamw(const SideOptions& side);

}  // namespace dsv32::harness
