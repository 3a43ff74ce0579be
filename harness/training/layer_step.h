#pragma once

#include "harness/cases/layers/run.h"
#include "src/training/bugs.h"

namespace dsv32::harness {

/// The step of a streamed run: AdamW as each implementation makes it, float32, with the numbers
/// that training::AdamW has from the start; `bug` is planted. Gradients of 16 bits are widened.
LayerStep adamw_step(training::Bug bug = training::Bug::none);

}  // namespace dsv32::harness
