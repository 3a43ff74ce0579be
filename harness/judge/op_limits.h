#pragma once

#include <span>
#include <string_view>

/// The limits of ops, tensor by tensor. A table of its own beside limits.h, because the suites of
/// kernels, whose every dependency is compiled with the sanitizers on, know neither traces nor
/// verdicts. Standard library only.
namespace dsv32::harness {

/// The largest errors that a tensor of an op may have against float64, in units: one unit is the
/// rounding of the tensor's dtype (2^-24 for float32, 2^-8 for bf16) times the scale of the
/// element. The same for every backend.
struct OpLimit {
  const char* tensor;
  double float32, bf16;
  const char* basis;
};
std::span<const OpLimit> op_limits();

/// The limit of one tensor. Throws std::out_of_range for a tensor without a row.
double op_limit(std::string_view tensor, bool is_bf16);

}  // namespace dsv32::harness
