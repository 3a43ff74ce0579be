#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "harness/cases/case_run.h"

namespace dsv32::harness {

/// An op whose own backward pass is wrong, in one layer or several that look alike.
struct BackwardOrigin {
  std::string op;               // the tap that the op makes: "layers.1.ffn_norm"
  std::string words;            // what is wrong with it
  std::vector<int64_t> layers;  // empty: outside of the layers
  std::vector<std::string>
      taps;  // the failing gradients, dtap.* and grad.*, nearest to the loss first
};

/// The ops that the failing staged gradients come from, the one nearest to the loss first: the
/// fewest that account for all of them. A gradient next to an op whose forward pass fails says
/// nothing of its own. Costs a few float64 passes of the reference for each place with several ops.
std::vector<BackwardOrigin> backward_origins(const CaseRun& run, const JudgedTrace& judged,
                                             const std::vector<Verdict>& verdicts);

}  // namespace dsv32::harness
