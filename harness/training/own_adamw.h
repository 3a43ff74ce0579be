#pragma once

#include <string>

#include "src/model/tensor.h"
#include "src/training/bugs.h"
#include "src/training/optimizer.h"

namespace dsv32::harness {

/// The AdamW kernels of an implementation in this dtype. None, which is torch's AdamW: for the
/// reference, for float64 masters, and for a planted bug, which lies in torch's.
training::AdamWKernels own_adamw(const std::string& impl, DType dtype, training::Bug bug);

}  // namespace dsv32::harness
