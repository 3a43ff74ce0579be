#pragma once

namespace dsv32 {

/// In which order the terms of a sum are added. Every order is right (docs/spec.md 1), as is every
/// way to make a power: what they differ by is the noise floor of the checks.
enum class Summation {
  blocked,     // as torch's kernels do: blocks and vector lanes, added at the end
  sequential,  // one term after the other, product and sum rounded apart, in float32
};

}  // namespace dsv32
