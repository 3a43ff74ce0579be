#pragma once

#include <string>
#include <vector>

/// The face of src/optimized: the op library, registered with the PyTorch dispatcher as `dsv32::*`.
namespace dsv32::optimized {

/// Ties the op library to the program that calls it: a linker drops a library without a called
/// symbol.
void load_ops();

/// An op that may give other bits on another run, and when. No other op does: not on another run,
/// not with another number of threads.
struct UnpromisedBits {
  std::string op;    // "sparse_mla_backward": of the library; "at::linear": of ATen, in the model
  std::string when;  // what the model itself does about it
};
const std::vector<UnpromisedBits>& unpromised_bits();

}  // namespace dsv32::optimized
