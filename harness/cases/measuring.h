#pragma once

#include "src/model/batch.h"
#include "src/model/implementation.h"

namespace dsv32::harness {

/// RunOptions::measure of a run that others are measured with: of each tap its distance to the
/// oracle is all that a verdict needs, so no more than the oracle is held whole. `in_force`: the
/// decisions of the run; where it has none, the oracle's. All of them must outlive the run.
decltype(RunOptions::measure) measured_against(const Trace& oracle, const Trace* in_force,
                                               const ModelConfig& config, const Batch& batch);

}  // namespace dsv32::harness
