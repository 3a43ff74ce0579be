#pragma once

#include "src/model/implementation.h"
#include "src/model/trace.h"

/// The run whose inputs and weights are perturbed: it shows how a rounding spreads.
namespace dsv32::harness {

/// The probe's options, from those of the runs that it belongs to.
RunOptions probe_options(const Case& c, RunOptions options);
/// The probe as one of the usual size would be if all were linear.
Trace drawn_out(const Case& c, Trace probe, const Trace& oracle);

}  // namespace dsv32::harness
