#pragma once

#include <string>

#include "harness/verdict.h"
#include "src/model/tensor.h"
#include "src/model/trace.h"

namespace dsv32::harness {

/// Every tolerance of the project. No literal stands anywhere else.
struct Limits {
  double row_ratio;      // max over rows of e_K / denominator
  double tensor_ratio;   // of whole tensors
  double cap;            // times the oracle's own sensitivity to one rounding of its inputs, plus one rounding
  double tail;           // element error in units of element noise that only `tail_fraction` may exceed
  double tail_fraction;
  double max_tail;       // none may exceed this
  std::string basis;     // how these were found
};

/// Limits of one tap in one mode for a subject of this dtype.
const Limits& limits_for(const TapName& tap, Mode mode, DType dtype);

/// Relative distance golden - oracle under replay that a float32 golden may have ("tiny", "small", ...).
Measure golden_relative_limit(const std::string& config_name, double measured);

/// Decision band: an exclusive element may lie within 2 * band * (element noise of the scores) of the cut.
double decision_band(Mode mode);
/// Share of one group (head, expert, tail rows) of the squared error from which the structure names it.
double structure_share();

/// The whole table as text for `list limits` and the docs.
std::string limits_table();

}  // namespace dsv32::harness
