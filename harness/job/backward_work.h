#pragma once

#include "src/model/case.h"
#include "src/model/segment.h"

/// What the backward pass of a segment takes (docs/architecture.md 7.1), for the estimate.
namespace dsv32::harness {

/// Of one pass: the segment again, and twice its products for the two gradients of each.
double backward_flops(const Case& c, const Segment& segment);
/// Bytes that the largest pass works on beside what waits on disk.
double backward_bytes(const Case& c, const Segment& segment);
/// Elements of the largest part of its gradients that is there together.
double gradients_together(const Case& c, const Segment& segment);

}  // namespace dsv32::harness
