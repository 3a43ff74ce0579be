#pragma once

/// The face of src/optimized: the op library, registered with the PyTorch dispatcher as `dsv32::*`.
namespace dsv32::optimized {

/// Ties the op library to the program that calls it: a linker drops a library without a called
/// symbol.
void load_ops();

}  // namespace dsv32::optimized
