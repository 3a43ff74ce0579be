#pragma once

#include <string>

/// What torch runs on, without a header of torch.
namespace dsv32 {

/// The version that this program was built with.
std::string torch_version();
/// What multiplies matrices on the CPU: the BLAS and DNN libraries of this torch and the widest
/// vectors that it uses.
std::string arithmetic_library();
/// "cuda" when a device is there and asked for by `auto`, else "cpu". Throws Error (environment)
/// for cuda without a device.
std::string resolve_device(const std::string& asked);
/// Of every op from now on.
void set_threads(int threads);
/// From now on a large block of memory goes back as soon as torch lets go of it, so that a run of
/// large tensors holds what it uses and no more.
void return_large_blocks();

}  // namespace dsv32
