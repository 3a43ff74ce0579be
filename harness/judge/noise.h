#pragma once

#include <string>
#include <vector>

#include "harness/judge/verdict.h"

namespace dsv32::harness {

/// What a clean run of the judged engine says about the noise of its machine: its own verdicts,
/// made as those that are to be widened.
struct CleanRun {
  std::string label;  // "clean.safetensors"
  std::vector<Verdict> verdicts;
};

/// Widens every failing check of values by the noise of the same check in the clean run, and judges
/// it again. The noise floor of a check becomes the larger of ours and the clean run's error, so
/// that no limit gets smaller. Exact rules stay. Returns one line for people: how much of it was
/// needed.
std::string widen_by_noise(const CleanRun& clean, std::vector<Verdict>& verdicts);

}  // namespace dsv32::harness
