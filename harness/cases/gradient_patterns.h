#pragma once

#include <string>
#include <vector>

#include "harness/judge/verdict.h"

namespace dsv32::harness {

/// Failing gradients that one sentence covers: the same factor on all tensors of a kind, gradients
/// that are exactly zero, or everything from one place back to the input.
struct GradientPattern {
  std::string words;              // "gradients of the routed experts x 2 (all 48)"
  std::vector<std::string> taps;  // grad.*, the one nearest to the loss first
};

/// `failing` and `passing`: gradient taps of one subject; `verdicts`: those of the same subject,
/// which say what a failing gradient looks like. Every failing tap is in one pattern.
std::vector<GradientPattern> gradient_patterns(const std::vector<std::string>& failing,
                                               const std::vector<std::string>& passing,
                                               const std::vector<Verdict>& verdicts);
/// "the routed experts (3 of 48) and the norms (all 9)": the kinds of weights that fail, with how
/// many of theirs, and of how many.
std::string members_of(const std::vector<std::string>& failing,
                       const std::vector<std::string>& passing);
/// The same patterns of all gradients among these verdicts.
std::vector<GradientPattern> gradient_patterns(const std::vector<Verdict>& verdicts);

}  // namespace dsv32::harness
